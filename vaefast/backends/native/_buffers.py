"""The memory of large results, kept for the next ones: fresh memory is zeroed by the system, page
by page, which costs more than writing a result does.

A result's storage is torch's own, so it can be resized, shared and saved as any other. A tensor on
it is held here; once that is the only one, the next result of its size takes the storage over.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import _C, _torch

# From here on huge pages are asked for; below it is not worth the system call.
_HUGE = 1 << 22
# Storages that as many results passed over are let go: the program does something else by now.
_PATIENCE = 64
# That is looked for at every so many, as to look at one costs as much as to take one.
_LOOKS = 16


@dataclass(slots=True)
class _Held:
    """A tensor on a storage, and when that was last taken."""

    tensor: Tensor
    storage: torch.UntypedStorage
    address: int
    bytes: int
    since: int

    def is_idle(self) -> bool:
        """Whether nothing else is on the storage: a tensor, or who holds it in Python, where torch
        has one object for all."""
        assert _torch.storage_use_count is not None
        return _torch.storage_use_count(self.storage._cdata) == 2 and self.references() == _ALONE

    def references(self) -> int:
        return sys.getrefcount(self.storage)

    def is_unchanged(self) -> bool:
        """Whether the storage was neither resized nor moved to shared memory."""
        return self.storage.data_ptr() == self.address and self.storage.nbytes() == self.bytes

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, since: int) -> Tensor:
        self.since = since
        if (
            self.tensor.shape != shape
            or self.tensor.dtype is not dtype
            or self.tensor.is_inference() is not torch.is_inference_mode_enabled()
        ):
            # In two steps, so that no other thread finds it idle.
            tensor = torch.empty(0, dtype=dtype, device="cpu")
            self.tensor = tensor.set_(self.storage, 0, shape, _dense(shape))
        # Another tensor with a version of its own.
        return self.tensor.data


def _alone() -> int:
    """Python's references to a storage that nothing but a _Held holds. Some versions of torch count
    a tensor's hold among them."""
    tensor = torch.empty(1, device="cpu")
    return _Held(tensor, tensor.untyped_storage(), 0, 0, 0).references()


_ALONE = _alone()


class _Buffers:
    """Storages of at most `limit` bytes in all, in use or not."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[int, list[_Held]] = {}
        self._takes = 0
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An unwritten dense tensor."""
        shape = tuple(shape)
        size = math.prod(shape) * dtype.itemsize
        if not self.limit or _torch.storage_use_count is None or _torch.dispatch_modes():
            return _fresh(shape, dtype)
        with self._lock:
            self._takes += 1
            if self._takes % _LOOKS == 0:
                self._let_go()
            for held in self._held.get(size, ()):
                if held.is_idle() and held.is_unchanged():
                    return _filled(held.take(shape, dtype, self._takes))
            tensor = _fresh(shape, dtype)
            if self.bytes()[0] + size > self.limit:
                self._let_go()
            if self.bytes()[0] + size <= self.limit:
                held = _Held(tensor, tensor.untyped_storage(), tensor.data_ptr(), size, self._takes)
                self._held.setdefault(size, []).append(held)
                return tensor.data
            return tensor

    def bytes(self) -> tuple[int, int]:
        """How many are held, and how many of these are free to be taken."""
        held = [h for same in self._held.values() for h in same]
        return sum(h.bytes for h in held), sum(h.bytes for h in held if h.is_idle())

    def clear(self) -> None:
        with self._lock:
            self._held = {}

    def _let_go(self) -> None:
        kept = {
            size: [h for h in same if self._worth_keeping(h)] for size, same in self._held.items()
        }
        self._held = {size: same for size, same in kept.items() if same}

    def _worth_keeping(self, held: _Held) -> bool:
        return held.is_unchanged() and (self._takes - held.since < _PATIENCE or not held.is_idle())


def _fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
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
