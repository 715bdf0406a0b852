"""The calls that a standard VAE makes at every step, at sizes where what leads to a kernel costs
more than the kernel: a call like one that passed all checks is made from a recipe.

What a recipe's key does not say (tracing, transforms, subclasses, views whose memory holds other
numbers, hooks on what autograd saves) sends the call the long way, which is always right. Half of
such a call is Python's interpreter, at some 20 ns a bytecode, so it is written for few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._torch import (
    dispatch_modes,
    forward_mode,
    saved_tensor_hooks,
    tracing,
    transforms_active,
)
from ..backends import asked
from ..backends._options import Nll, Posterior
from ._autograd import PLAIN

# More signatures than any one program calls with.
LIMIT = 1024

recording = torch.is_grad_enabled


class Recipe:
    """A call of the core made ready, the options it was made of, and its autograd function."""

    __slots__ = ("apply", "options", "small")

    def __init__(self, small: Any, options: Posterior | Nll, apply: Callable[..., Any]) -> None:
        self.small = small
        self.options = options
        self.apply = apply


kept: dict[Hashable, Recipe] = {}


def key_of(tensors: tuple[Tensor, ...], settings: tuple[object, ...]) -> Hashable | None:
    """What a recipe is kept under; None where more may stand behind a tensor than it shows."""
    if (
        dispatch_modes()
        or transforms_active()
        or forward_mode()
        or tracing() is not None
        or saved_tensor_hooks(True) is not None
    ):
        return None
    key: list[Hashable] = [asked(), settings]
    try:
        for t in tensors:
            # A zero tensor has no memory, and to ask for its memory is an error of what a
            # transform has left behind.
            if type(t) not in PLAIN or t.is_neg() or not t.data_ptr():
                return None
            key += t.shape, t.stride(), t.dtype, t.is_cpu
    except RuntimeError:
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
        return
    if len(kept) >= LIMIT:
        kept.clear()
    try:
        kept[key] = make()
    except (Copied, TypeError):
        return


def serves_natively(tensor: Tensor) -> bool:
    return tensor.is_cpu and backends.select("cpu") == "native"
