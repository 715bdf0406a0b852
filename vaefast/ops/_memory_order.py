"""Operands whose dimensions lie in memory in another order than they are counted, as channels_last
has them: a kernel walks them as they lie, and what it makes lies as they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor
from torch.compiler import is_compiling

T = TypeVar("T", Tensor, Tensor | None)

# Below this many columns a row that is not the next one's neighbour costs more than a copy.
_SHORT = 128


def memory_order(tensor: Tensor, lead: int) -> tuple[int, ...] | None:
    """The dimensions from the outermost in memory to the innermost, behind the first `lead`; None
    where they are counted so, or where the innermost is not dense.

    None under a compiler, which would take the strides for constants.
    """
    if is_compiling() or tensor.is_contiguous():
        return None
    shape, strides = tensor.shape, tensor.stride()
    rest = range(lead, tensor.dim())
    real = [d for d in rest if shape[d] != 1]
    found = sorted(real, key=lambda d: -strides[d])
    if found == real or strides[found[-1]] != 1 or not all(shape):
        return None
    return (*range(lead), *(d for d in rest if shape[d] == 1), *found)


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """The order that undoes another."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def ordered(tensor: T, order: Sequence[int]) -> T:
    """A view of `tensor`, which broadcasts to the dimensions of `order`, with these in that order;
    a copy where its rows would be short."""
    if tensor is None:
        return tensor
    view = tensor[(None,) * (len(order) - tensor.dim())].permute(tuple(order))
    short = view.shape[-1] < _SHORT and 0 not in view.stride()
    return view.contiguous() if short else view
