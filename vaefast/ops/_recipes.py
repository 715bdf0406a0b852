"""The calls that a standard VAE makes at every step, at sizes where what leads to a kernel costs
more than the kernel: a call like one that passed all checks is made from a recipe.

What a recipe's key does not say (tracing, transforms, subclasses, views whose memory holds other
numbers, hooks on what autograd saves) sends the call the long way, which is always right. Half of
such a call is Python's interpreter, at some 20 ns a bytecode, so it is written for few of them.
"""

from __future__ import annotations

import threading
from collections import UserDict
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from .. import backends
from .._explain import declined, served
from .._torch import (
    dispatch_modes,
    forward_mode,
    saved_tensor_hooks,
    tracing,
    transforms_active,
)
from ..backends import asked
from ..backends._options import Nll, Posterior
from ._register import PLAIN

# More signatures than any one program calls with.
LIMIT = 1024

recording = torch.is_grad_enabled


class Recipe:
    """A call of the core made ready, the options it was made of, and its autograd function.

    `name`: what it is of: "sample_kl", "nll" or "elbo_loss".
    """

    __slots__ = ("apply", "name", "options", "small")

    def __init__(
        self, name: str, small: Any, options: Posterior | Nll, apply: Callable[..., Any]
    ) -> None:
        self.name = name
        self.small = small
        self.options = options
        self.apply = apply


kept: MutableMapping[Hashable, Recipe] = {}


def key_of(tensors: tuple[Tensor, ...], settings: tuple[object, ...]) -> Hashable | None:
    """What a recipe is kept under; None where more may stand behind a tensor than it shows."""
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
            if type(t) not in PLAIN:
                declined("class", type(t).__name__)
                return None
            if not t.is_cpu:
                declined("device", t.device.type)
                return None
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


def _settings(key: Hashable) -> Iterator[object]:
    """The numbers and words of a key, those in a clamp or a likelihood's tuple too."""
    if isinstance(key, tuple):
        for value in key:
            yield from _settings(value)
    else:
        yield key


def keep(key: Hashable, make: Callable[[], Recipe]) -> None:
    """Keeps the recipe that `make` makes, unless the core cannot read an operand where it is."""
    from ..backends.native.small import Copied

    # A tensor is found again by its identity, whatever it holds by then.
    if any(isinstance(value, Tensor) for value in _settings(key)):
        return declined("settings", "it is a tensor")
    if len(kept) >= LIMIT:
        kept.clear()
    try:
        kept[key] = make()
    except Copied:
        declined("layout", "an operand has to be copied first")
    except TypeError:
        declined("settings", "it is not hashable")


def serves_natively() -> bool:
    serving = backends.select("cpu")
    if serving != "native":
        declined("backend", serving)
        return False
    return True


@contextmanager
def watched() -> Iterator[None]:
    """Until it is closed, recipes tell `explain` of their use; it may be open several times."""
    global kept, _watchers
    with _watching:
        if not _watchers:
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


class _Watched(UserDict[Hashable, Recipe]):
    """The recipes kept, those looked up by `get` so that they tell of their use."""

    def __init__(self, recipes: MutableMapping[Hashable, Recipe]) -> None:
        self.data = cast(dict[Hashable, Recipe], recipes)

    def get(self, key: Hashable, default: Any = None) -> Any:
        found = self.data.get(key)
        return default if found is None else _Telling(found)


class _Telling:
    """A recipe that tells once that it is used."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._told = False

    def __getattr__(self, name: str) -> Any:
        if not self._told and name in ("apply", "small"):
            self._told = True
            served(self._recipe.name, "native", "fast")
        return getattr(self._recipe, name)
