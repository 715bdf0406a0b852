"""Operands of a row-wise kernel as strided views over one `[rows, cols]` grid, without copies."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class View(NamedTuple):
    """Element (row, col) is at `(row // div) % mod * row_stride + col * col_stride`."""

    tensor: Tensor
    div: int
    mod: int
    row_stride: int
    col_stride: int


class Grid(NamedTuple):
    """The grid, and each operand's view of it (None for an absent operand).

    `segments` rows make up one sample: one, unless an operand broadcasts inside a sample.
    """

    rows: int
    cols: int
    segments: int
    views: tuple[View | None, ...]


def grid_of(shape: Sequence[int], lead: int, operands: Sequence[Tensor | None]) -> Grid:
    """The grid for a kernel over `shape`, whose first `lead` dimensions index the samples.

    Args:
        shape: the full logical shape.
        lead: how many leading dimensions a sample's sum is not taken over.
        operands: tensors that broadcast to `shape` from the right, or None.

    The innermost dimensions that every operand can walk with one stride become the columns. An
    operand that needs more than one stride outside of them is materialised.
    """
    keys = tuple([None if t is None else (t.shape, t.stride()) for t in operands])
    rows, cols, segments, found = places(tuple(shape), lead, keys)
    views = [
        None if t is None or place is None else View(laid_out(t, place, shape), *place[:4])
        for t, place in zip(operands, found, strict=True)
    ]
    return Grid(rows, cols, segments, tuple(views))


class Place(NamedTuple):
    """A View's numbers. `copy`: "" for the operand itself, "dense" for a dense copy of it, "full"
    for one of the grid's whole shape."""

    div: int
    mod: int
    row_stride: int
    col_stride: int
    copy: str


def laid_out(tensor: Tensor, place: Place, shape: Sequence[int]) -> Tensor:
    """What `place` is a place of: `tensor`, or the copy of it that is asked for."""
    if not place.copy:
        return tensor
    return (tensor.expand(shape) if place.copy == "full" else tensor).contiguous()


_Key = tuple[Sequence[int], tuple[int, ...]] | None


# A model calls with the same few shapes again and again, and this takes 30 us.
@functools.lru_cache(maxsize=4096)
def places(
    shape: tuple[int, ...], lead: int, keys: tuple[_Key, ...]
) -> tuple[int, int, int, tuple[Place | None, ...]]:
    """The grid's rows, columns and segments, and the operands' places, from the shape and strides
    of each."""
    # An innermost dimension that is neither dense nor expanded must be made dense first.
    dense_first = [key is not None and _inner_stride(*key) not in (0, 1) for key in keys]
    strides = [
        None
        if key is None
        else _strides(key[0], dense_strides(key[0]) if d else key[1], len(shape))
        for key, d in zip(keys, dense_first, strict=True)
    ]
    split = max((_split(shape, lead, s) for s in strides if s is not None), default=lead)
    if 0 in shape:
        # A sample of no elements has its row all the same: its sum, 0, must be written.
        split = lead
    samples, rows, cols = (math.prod(part) for part in (shape[:lead], shape[:split], shape[split:]))
    found: list[Place | None] = []
    for step, dense_one in zip(strides, dense_first, strict=True):
        if step is None:
            found.append(None)
        elif 0 in shape:
            # Where nothing is stored, no stride matters.
            found.append(Place(1, 1, 0, 0, ""))
        else:
            found.append(_place(step, shape, split, "dense" if dense_one else ""))
    return rows, cols, rows // samples if samples else 1, tuple(found)


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense tensor, as torch has them."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


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


def _place(strides: tuple[int, ...], shape: tuple[int, ...], split: int, copy: str) -> Place:
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
            return Place(1, max(rows, 1), cols, 1, "full")
        mod *= size
    return Place(div, mod, step, inner, copy)
