"""Tensors and views as the plain tuples that vaefast._C takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import View, dense, grid_of
from ._buffers import buffers

DTYPES = {
    torch.float64: 0,
    torch.float32: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.uint8: 4,
    torch.bool: 5,
    torch.int32: 6,
    torch.int64: 7,
}
REDUCE = {"": 0, "elem": 1, "sample": 2, "dim": 3, "sum": 4}

# From here on a result's memory is kept for the next: a fresh page costs more than writing it does.
KEPT = 1 << 19

Packed = tuple[int, int, int, int, int, int, float]


def operand(view: View | None, divisor: float = 1.0) -> Packed | None:
    """An operand for the core; None for an absent one."""
    if view is None:
        return None
    tensor, div, mod, row_stride, col_stride = view
    return (tensor.data_ptr(), DTYPES[tensor.dtype], div, mod, row_stride, col_stride, divisor)


def pack(
    shape: torch.Size, lead: int, tensors: Sequence[Tensor | None]
) -> tuple[tuple[int, int, int], list[Packed | None], object]:
    """The grid (rows, cols, segments), every operand over it, and what must outlive the call."""
    if dense(shape, tensors):
        # What `grid_of` would give, without the detour: it is much of a small operator's time.
        samples = shape[0] if lead == 1 else shape[:lead].numel()
        cols = shape.numel() // samples if samples else shape[lead:].numel()
        mod = samples or 1
        packed: list[Packed | None] = [
            None if t is None else (t.data_ptr(), DTYPES[t.dtype], 1, mod, cols, 1, 1.0)
            for t in tensors
        ]
        return (samples, cols, 1), packed, tensors
    grid = grid_of(shape, lead, tensors)
    return (grid.rows, grid.cols, grid.segments), [operand(v) for v in grid.views], grid


def result(tensor: Tensor | None) -> tuple[int, int] | None:
    """A dense result for the core; None for one that is not wanted."""
    return None if tensor is None else (tensor.data_ptr(), DTYPES[tensor.dtype])


def state_of(state: Tensor | None, offset: int) -> tuple[int, bool, int] | None:
    """A noise state for the core."""
    return None if state is None else (state.data_ptr(), state.dim() > 1, offset)


def fresh(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An unwritten result; a large one in memory that an earlier one gave back, or on huge pages
    where the system has them."""
    if device.type == "cpu" and math.prod(shape) * dtype.itemsize >= KEPT:
        return buffers.empty(shape, dtype)
    return torch.empty(shape, dtype=dtype, device=device)


def fresh_like(tensor: Tensor) -> Tensor:
    """As `fresh`, dense, with the shape, dtype and device of `tensor`."""
    if tensor.nbytes >= KEPT and tensor.is_cpu:
        return buffers.empty(tensor.shape, tensor.dtype)
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
