"""`noise` by Triton: 4 bytes written per element in float32, nothing read, one launch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grid import launch, share, tile_at
from ._philox import tile_noise


def noise(
    state: Tensor, shape: Sequence[int], dtype: torch.dtype, kind: str, purpose: int, offset: int
) -> Tensor:
    """`kind` ("normal" or "uniform") of `shape` from `state`, `[2]` or `[B, 2]`."""
    out = torch.empty(tuple(shape), dtype=dtype, device=state.device)
    if not out.numel():
        return out
    per_sample = state.dim() > 1
    rows = shape[0] if per_sample else 1
    grid = (rows, math.prod(shape) // rows)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    work = share(grid, 1, (out.view(grid),), compute, "", rowwise=per_sample)
    launch(
        _noise,
        work.programs,
        out.device,
        out,
        state,
        offset,
        *work.sizes,
        NORMAL=kind == "normal",
        PURPOSE=purpose,
        PER_SAMPLE=per_sample,
        ALIGNED=work.cols % 4 == 0,
        **work.meta,
    )
    return out


@triton.jit(do_not_specialize=["offset"])
def _noise(
    out,
    state,
    offset: tl.int64,
    rows,
    cols,
    segments,
    row_tiles,
    col_tiles,
    splits,
    NORMAL: tl.constexpr,
    PURPOSE: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUP: tl.constexpr,
    VEC: tl.constexpr,
    WIDE: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    # out: [rows, cols], state: [2] or [rows, 2]
    tile = tl.program_id(0)
    cols = cols * VEC
    row, first, columns, live_row, live = tile_at(tile, col_tiles, rows, cols, ROWS, COLS, WIDE)
    values = tile_noise(
        state, offset, row, first, live_row, cols, segments, 0,
        PURPOSE, NORMAL, PER_SAMPLE, ALIGNED, GROUP, ROWS, COLS, DTYPE,
    )  # fmt: skip
    tl.store(out + (row * cols + columns), values, mask=live)
