"""The memory of large results, kept for the next ones: fresh memory is zeroed by the system, page
by page, which costs more than writing a result does.

A result's storage is torch's own, so it can be resized, shared and saved as any other. A second
reference to it is held here; once that is the only one, the next result of its size takes the
storage over.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _C, _torch

# From here on huge pages are asked for; below it is not worth the system call.
_HUGE = 1 << 22
# Storages that as many results passed over are let go: the program does something else by now.
_PATIENCE = 64
# That is looked for at every so many, as to look at one costs as much as to take one.
_LOOKS = 16


class _Held(NamedTuple):
    storage: torch.UntypedStorage
    address: int
    bytes: int
    since: int


class _Buffers:
    """Storages of at most `limit` bytes in all, in use or not."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[int, list[_Held]] = {}
        self._takes = 0
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An unwritten dense tensor."""
        size = math.prod(shape) * dtype.itemsize
        if not self.limit or _torch.storage_use_count is None or _torch.dispatch_modes():
            return _fresh(shape, dtype)
        with self._lock:
            self._takes += 1
            if self._takes % _LOOKS == 0:
                self._let_go()
            same = self._held.setdefault(size, [])
            for index, held in enumerate(same):
                if _idle(held) and _unchanged(held):
                    # In two steps, so that no other thread finds it idle.
                    tensor = torch.empty(0, dtype=dtype, device="cpu")
                    tensor.set_(held.storage, 0, tuple(shape), _dense(shape))
                    same[index] = held._replace(since=self._takes)
                    return _filled(tensor)
            tensor = _fresh(shape, dtype)
            if self.bytes()[0] + size > self.limit:
                self._let_go()
            if self.bytes()[0] + size <= self.limit:
                storage = tensor.untyped_storage()
                same = self._held.setdefault(size, [])
                same.append(_Held(storage, storage.data_ptr(), size, self._takes))
            return tensor

    def bytes(self) -> tuple[int, int]:
        """How many are held, and how many of these are free to be taken."""
        held = [h for same in self._held.values() for h in same]
        return sum(h.bytes for h in held), sum(h.bytes for h in held if _idle(h))

    def clear(self) -> None:
        with self._lock:
            self._held = {}

    def _let_go(self) -> None:
        kept = {
            size: [h for h in same if self._worth_keeping(h)] for size, same in self._held.items()
        }
        self._held = {size: same for size, same in kept.items() if same}

    def _worth_keeping(self, held: _Held) -> bool:
        return _unchanged(held) and (self._takes - held.since < _PATIENCE or not _idle(held))


def _unchanged(held: _Held) -> bool:
    # A storage that was resized, or moved to shared memory, is no longer what it was.
    return held.storage.data_ptr() == held.address and held.storage.nbytes() == held.bytes


def _idle(held: _Held) -> bool:
    assert _torch.storage_use_count is not None
    return _torch.storage_use_count(held.storage._cdata) == 1


def _fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(tuple(shape), dtype=dtype, device="cpu")
    if tensor.nbytes >= _HUGE:
        _C.advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _filled(tensor: Tensor) -> Tensor:
    """As torch.empty has it: NaN under deterministic algorithms, where that is asked for."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    if deterministic and torch.utils.deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
        tensor.fill_(math.nan)
    return tensor


def _first_limit() -> int:
    """From VAEFAST_BUFFER_CACHE, in MiB."""
    asked = os.environ.get("VAEFAST_BUFFER_CACHE", "")
    return int(asked) << 20 if asked.isdecimal() else 256 << 20


buffers = _Buffers(_first_limit())
