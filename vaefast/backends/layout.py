"""Operands of a row-wise kernel as strided views over one `[rows, cols]` grid, without copies."""

from __future__ import annotations

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
    shape = tuple(shape)
    samples = math.prod(shape[:lead])
    if dense(shape, operands):
        cols = math.prod(shape[lead:])
        mod = max(samples, 1)
        whole = [None if t is None else View(t, 1, mod, cols, 1) for t in operands]
        return Plan(samples, cols, 1, tuple(whole))
    fitted = [None if t is None else _unit_inner(t) for t in operands]
    strides = [None if t is None else _strides(t, shape) for t in fitted]
    split = max((_split(shape, lead, s) for s in strides if s is not None), default=lead)
    rows, cols = math.prod(shape[:split]), math.prod(shape[split:])
    views = tuple(
        None if t is None or s is None else _view(t, s, shape, split)
        for t, s in zip(fitted, strides, strict=True)
    )
    return Plan(rows, cols, rows // samples if samples else 1, views)


def dense(shape: Sequence[int], operands: Sequence[Tensor | None]) -> bool:
    """True where every operand is contiguous and of `shape`."""
    for t in operands:
        if t is not None and (t.shape != shape or not t.is_contiguous()):
            return False
    return True


def _unit_inner(tensor: Tensor) -> Tensor:
    """`tensor`, copied where its innermost dimension is neither dense nor expanded."""
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if size != 1:
            return tensor if stride in (0, 1) else tensor.contiguous()
    return tensor


def _strides(tensor: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of `tensor` expanded to `shape`, 0 wherever it is broadcast or of size 1."""
    own = [
        0 if size == 1 else step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    return (0,) * (len(shape) - len(own)) + tuple(own)


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


def _view(tensor: Tensor, strides: tuple[int, ...], shape: tuple[int, ...], split: int) -> View:
    inner = next(
        (
            step
            for size, step in zip(reversed(shape[split:]), reversed(strides[split:]), strict=True)
            if size != 1
        ),
        0,
    )
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
            return _view_of_copy(tensor, shape, split)
        mod *= size
    return View(tensor, div, mod, step, inner)


def _view_of_copy(tensor: Tensor, shape: tuple[int, ...], split: int) -> View:
    dense = tensor.expand(shape).contiguous()
    return View(dense, 1, max(math.prod(shape[:split]), 1), math.prod(shape[split:]), 1)
