"""`scale_` by Triton: one launch, which moves nothing where that is 1."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grid import launch, load, share, tile_at


def scale_(grad: Tensor, upstream: Tensor) -> None:
    """grad *= upstream in place; nothing is touched where that is 1."""
    if not grad.numel():
        return
    dtype = torch.float64 if torch.float64 in (grad.dtype, upstream.dtype) else torch.float32
    shape = grad.shape if grad.dim() else (1,)
    work = share(shape, 1, (grad.view(shape), upstream), dtype, "")
    launch(
        _scale,
        work.programs,
        grad.device,
        grad,
        work.operands[1],
        work.rows,
        work.cols // work.meta["VEC"],
        work.col_tiles,
        ONE=upstream.numel() == 1,
        **work.meta,
    )


@triton.jit
def _scale(
    grad,
    upstream,
    rows,
    cols,
    col_tiles,
    ONE: tl.constexpr,
    GROUP: tl.constexpr,
    VEC: tl.constexpr,
    WIDE: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    # grad: [rows, cols]; upstream: a view over it
    if ONE and tl.load(upstream[0]).to(DTYPE) == 1.0:
        return
    cols = cols * VEC
    tile = tl.program_id(0)
    row, _, columns, live_row, live = tile_at(tile, col_tiles, rows, cols, ROWS, COLS, WIDE)
    place = grad + (row * cols + columns)
    by = load(upstream, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
    tl.store(place, tl.load(place, mask=live, other=0).to(DTYPE) * by, mask=live)
