"""The plans that are kept, so that a call like one before finds one: the fast path.

A plan is a call made ready but for its tensors; a backend makes it of their shapes, strides and
dtypes and of the settings (vaefast/backends/native/). Whoever has passed all checks makes one, or
is given the one that was made before, and runs it; a call whose key is found here passed the same
checks before. What a key does not say (tracing, transforms, subclasses, views whose memory holds
other numbers, hooks on what autograd saves) is asked for first, and goes the slow path. Half of a
small call is Python's interpreter, at some 20 ns a bytecode, so this is written for few of them.
"""

from __future__ import annotations

import threading
from collections import UserDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .._explain import declined, served
from .._looks import Looks
from .._torch import (
    dispatch_modes,
    forward_mode,
    saved_tensor_hooks,
    tracing,
    transforms_active,
)
from ..backends import asked
from ._register import PLAIN, Operator, direct, settled

# More signatures than any one program calls with.
LIMIT = 1024

recording = torch.is_grad_enabled
_data_ptr: Any = Tensor.data_ptr


class Plan(Protocol):
    """`operator`: its name in `torch.ops.vaefast`."""

    @property
    def operator(self) -> str: ...


class Kept(dict[Hashable, Plan]):
    """Plans by their keys, which say of each tensor what a plan goes by.

    `looks`: by the backend that was asked for, the number of tensors and the settings, the key and
    the plan of tensors that look so.
    """

    __slots__ = ("looks",)

    def __init__(self) -> None:
        self.looks: Looks | None = Looks()

    def clear(self) -> None:
        super().clear()
        self.looks = Looks()


kept: Kept | _Watched = Kept()


def find(
    tensors: tuple[Tensor | None, ...], settings: tuple[object, ...]
) -> tuple[Hashable | None, Any]:
    """What to keep this call's plan under, None for nothing; and the plan that is kept there."""
    if is_dynamo_compiling():
        return None, None
    try:
        kind, looks = (asked(), len(tensors), settings), kept.looks
        seen = None if looks is None else looks.find(kind, tensors)
        if (
            seen is not None
            and not dispatch_modes()
            and not forward_mode()
            and saved_tensor_hooks(True) is None
            and all(map(_data_ptr, tensors))
        ):
            found: tuple[Hashable, Plan] = seen
            return found
        key = key_of(tensors, settings)
        plan = kept.get(key)
        if plan is not None and seen is None and looks is not None:
            looks.add(kind, tensors, (key, plan))
        return key, plan
    except TypeError:
        # A clamp may be a list, and a likelihood of the user's may hold anything.
        declined("settings", "it is not hashable")
        return None, None


def takes(*constants: Tensor | None) -> bool:
    """False where a gradient is asked for to what kernels take as constant (weight, noise)."""
    if recording():
        for t in constants:
            if getattr(t, "requires_grad", False):
                return False
    return True


def key_of(tensors: tuple[Tensor | None, ...], settings: tuple[object, ...]) -> Hashable | None:
    """None where more may stand behind a tensor than it shows."""
    if dispatch_modes():
        declined("mode")
        return None
    if transforms_active():
        declined("transform")
        return None
    if forward_mode():
        declined("forward")
        return None
    if tracing() is not None:
        declined("trace")
        return None
    if saved_tensor_hooks(True) is not None:
        declined("hooks")
        return None
    key: list[Hashable] = [asked(), settings]
    try:
        for t in tensors:
            # A zero tensor has no memory, and to ask for its memory is an error of what a
            # transform has left behind.
            if t is None:
                key.append(None)
                continue
            if type(t) not in PLAIN:
                declined("class", type(t).__name__)
                return None
            if not t.is_cpu:
                if not t.is_cuda:
                    declined("device", t.device.type)
                    return None
                # A plan is of one device; which stream is current is asked at each call.
                key.append(t.get_device())
            if t.is_neg():
                declined("negated")
                return None
            if not t.data_ptr():
                declined("memory")
                return None
            key += t.shape, t.stride(), t.dtype
    except RuntimeError:
        declined("memory")
        return None
    return tuple(key)


def if_taken(
    key: Hashable | None, given: Sequence[Tensor | None], taken: Sequence[Tensor | None]
) -> Hashable | None:
    """The key, where the tensors that it was made of are those that the kernel takes."""
    if key is not None and any(a is not b for a, b in zip(given, taken, strict=True)):
        declined("copied")
        return None
    return key


def keep(key: Hashable | None, plan: Plan) -> None:
    """Keeps a plan for the calls that are alike."""
    if key is None:
        return
    # A tensor is found again by its identity, whatever it holds by then.
    if any(isinstance(value, Tensor) for value in _settings(key)):
        return declined("settings", "it is a tensor")
    if len(kept) >= LIMIT:
        kept.clear()
    kept[key] = plan


class Settings(NamedTuple):
    """The plan of an operator whose kernels look at their operands at each call: the settings that
    the checks have left, and who serves.

    `options`: what a backend's function takes behind the tensors. `planned`: torch's dispatcher
    need not see the call.
    """

    operator: str
    options: tuple[Any, ...]
    backend: str
    planned: bool

    def run(self, by: Operator, tensors: Sequence[Any], numbers: Tensor | None = None) -> Any:
        """The results; `numbers`: those that a compiler does not know of the options."""
        if self.planned:
            return by.by(self.backend, *tensors, *self.options)
        return by.call(self.backend, numbers, *tensors, *self.options)


def settings_of(
    operator: str,
    backend: str,
    tensors: Sequence[Tensor | None],
    options: tuple[Any, ...],
    key: Hashable | None,
) -> tuple[Settings, Tensor | None]:
    """A call's plan, kept under the key where that is right, and the numbers of its first option
    that a compiler does not know."""
    if backend == "native" and direct(*tensors):
        plan = Settings(operator, options, backend, True)
        keep(key, plan)
        served(operator, backend, "direct")
        return plan, None
    if key is not None and backend != "native":
        declined("backend", backend)
    numbers = None
    if options:
        first, numbers = settled(options[0])
        options = (first, *options[1:])
    return Settings(operator, options, backend, False), numbers


def _settings(key: Hashable) -> Iterator[object]:
    """The numbers and words of a key, those in a clamp or a likelihood's tuple too."""
    if isinstance(key, tuple):
        for value in key:
            yield from _settings(value)
    else:
        yield key


@contextmanager
def watched() -> Iterator[None]:
    """Until it is closed, plans that are found tell `explain`; it may be open several times."""
    global kept, _watchers
    with _watching:
        if not isinstance(kept, _Watched):
            kept = _Watched(kept)
        _watchers += 1
    try:
        yield
    finally:
        with _watching:
            _watchers -= 1
            if not _watchers and isinstance(kept, _Watched):
                kept = kept.data


_watching = threading.Lock()
_watchers = 0


class _Watched(UserDict[Hashable, Plan]):
    """The plans kept; to find one is to use it, by its key alone."""

    looks = None

    def __init__(self, plans: Kept) -> None:
        self.data: Kept = plans

    def get(self, key: Hashable, default: Any = None) -> Any:
        found = self.data.get(key)
        if found is not None:
            served(found.operator, "native", "fast")
        return default if found is None else found
