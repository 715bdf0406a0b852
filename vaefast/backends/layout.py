"""Operands of a row-wise kernel as strided views over one `[rows, cols]` grid, without copies."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """Element (row, col) is at `(row // div) % mod * row_stride + col * col_stride`."""

    tensor: Tensor
    div: int
    mod: int
    row_stride: int
    col_stride: int


class Plan(NamedTuple):
    """The grid, and each operand's view of it (None for an absent operand).

    `segments` rows make up one sample: one, unless an operand broadcasts inside a sample.
    """

    rows: int
    cols: int
    segments: int
    views: tuple[View | None, ...]


def plan(shape: Sequence[int], lead: int, operands: Sequence[Tensor | None]) -> Plan:
    """The grid for a kernel over `shape`, whose first `lead` dimensions index the samples.

    Args:
        shape: the full logical shape.
        lead: how many leading dimensions a sample's sum is not taken over.
        operands: tensors that broadcast to `shape` from the right, or None.

    The innermost dimensions that every operand can walk with one stride become the columns. An
    operand that needs more than one stride outside of them is materialised.
    """
    keys = tuple([None if t is None else (t.shape, t.stride()) for t in operands])
    found = _places(tuple(shape), lead, keys)
    if found is None:
        return plan(shape, lead, [None if t is None else _unit_inner(t) for t in operands])
    rows, cols, segments, places = found
    views = [
        None
        if t is None or place is None
        else View(t.expand(shape).contiguous() if place.copy else t, *place[:4])
        for t, place in zip(operands, places, strict=True)
    ]
    return Plan(rows, cols, segments, tuple(views))


class _Place(NamedTuple):
    """A View's numbers; `copy`: those of a dense copy of the operand."""

    div: int
    mod: int
    row_stride: int
    col_stride: int
    copy: bool


_Key = tuple[torch.Size, tuple[int, ...]] | None


# A model calls with the same few shapes again and again, and this takes 30 us.
@functools.lru_cache(maxsize=4096)
def _places(
    shape: tuple[int, ...], lead: int, keys: tuple[_Key, ...]
) -> tuple[int, int, int, tuple[_Place | None, ...]] | None:
    """The grid and the operands' places, from shapes and strides; None: an innermost dimension
    must be made dense first."""
    for key in keys:
        if key is not None and _inner_stride(*key) not in (0, 1):
            return None
    strides = [None if key is None else _strides(*key, len(shape)) for key in keys]
    split = max((_split(shape, lead, s) for s in strides if s is not None), default=lead)
    if 0 in shape:
        # A sample of no elements has its row all the same: its sum, 0, must be written.
        split = lead
    samples, rows, cols = (math.prod(part) for part in (shape[:lead], shape[:split], shape[split:]))
    # Where nothing is stored, no stride matters.
    none = _Place(1, 1, 0, 0, copy=False)
    places = [
        None if s is None else none if 0 in shape else _place(s, shape, split) for s in strides
    ]
    return rows, cols, rows // samples if samples else 1, tuple(places)


def fitted(grads: Sequence[Tensor | None], parameters: Sequence[Tensor | None]) -> list[Tensor]:
    """The gradients there are, those made over what their parameter broadcasts to summed to its
    shape, in its dtype."""
    return [
        g if g.shape == t.shape else g.sum_to_size(t.shape).to(t.dtype)
        for g, t in zip(grads, parameters, strict=True)
        if g is not None and t is not None
    ]


def dense(shape: Sequence[int], operands: Sequence[Tensor | None]) -> bool:
    """True where every operand is contiguous and of `shape`."""
    for t in operands:
        if t is not None and (t.shape != shape or not t.is_contiguous()):
            return False
    return True


def _unit_inner(tensor: Tensor) -> Tensor:
    """`tensor`, copied where its innermost dimension is neither dense nor expanded."""
    dense_already = _inner_stride(tensor.shape, tensor.stride()) in (0, 1)
    return tensor if dense_already else tensor.contiguous()


def _inner_stride(shape: Sequence[int], strides: Sequence[int]) -> int:
    """The stride of the innermost dimension that is not of size 1; 0 where nothing is stored."""
    if 0 in shape:
        return 0
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            return stride
    return 0


def _strides(shape: Sequence[int], strides: Sequence[int], dims: int) -> tuple[int, ...]:
    """Strides expanded to `dims` dimensions, 0 wherever it is broadcast or of size 1."""
    own = [0 if size == 1 else step for size, step in zip(shape, strides, strict=True)]
    return (0,) * (dims - len(own)) + tuple(own)


def _split(shape: tuple[int, ...], lead: int, strides: tuple[int, ...]) -> int:
    """The least dimension from which on `strides` is one stride, 0 or 1."""
    split = len(shape)
    inner: int | None = None
    extent = 1
    while split > lead:
        size, step = shape[split - 1], strides[split - 1]
        if size != 1:
            if inner is None:
                if step not in (0, 1):
                    break
                inner = step
            elif step != inner * extent:
                break
            extent *= size
        split -= 1
    return split


def _place(strides: tuple[int, ...], shape: tuple[int, ...], split: int) -> _Place:
    inner = _inner_stride(shape[split:], strides[split:])
    outer = [
        (size, step) for size, step in zip(shape[:split], strides[:split], strict=True) if size != 1
    ]
    while outer and outer[0][1] == 0:
        outer.pop(0)
    div = 1
    while outer and outer[-1][1] == 0:
        div *= outer.pop()[0]
    mod, step = 1, 0
    for size, stride in reversed(outer):
        if mod == 1:
            step = stride
        elif stride != step * mod:
            rows, cols = math.prod(shape[:split]), math.prod(shape[split:])
            return _Place(1, max(rows, 1), cols, 1, copy=True)
        mod *= size
    return _Place(div, mod, step, inner, copy=False)
