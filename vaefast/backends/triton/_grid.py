"""How a kernel's programs share a `[rows, cols]` grid, and how they read their operands over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import View, grid_of

# Elements that a program of four warps holds at a time: two 16-byte loads of float32 a thread.
_TILE = 1024
_WARPS = 4
# Enough programs for two waves on the largest chip there is (132 to 160 multiprocessors, 16
# programs each); one number for all, so that a result does not depend on the chip.
_PROGRAMS = 4096
# Below so many rows a row's tiles are shared out between programs, at the price of a second launch.
_ROWS_ENOUGH = 1024

Operand = tuple[Any, ...] | None


class Work(NamedTuple):
    """The grid, what each program takes of it, and the operands.

    `rows` of `cols` elements, `segments` of them to a sample, in tiles `[ROWS, COLS]`; a row (or,
    summed per dimension, a column) is shared by `splits` programs. `meta` are the settings that
    the kernels are compiled for.
    """

    rows: int
    cols: int
    segments: int
    row_tiles: int
    col_tiles: int
    splits: int
    programs: int
    operands: tuple[Operand, ...]
    meta: dict[str, Any]

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """What a kernel needs to find its part; `cols` is a multiple of the meta VEC."""
        units = self.cols // self.meta["VEC"]
        return (self.rows, units, self.segments, self.row_tiles, self.col_tiles, self.splits)


def share(
    shape: Sequence[int],
    lead: int,
    tensors: Sequence[Tensor | None],
    dtype: torch.dtype,
    over: str,
    *,
    copies: int = 1,
    rowwise: bool = False,
    heavy: bool = False,
    extra: View | None = None,
) -> Work:
    """The work of a kernel over `shape`, whose first `lead` dimensions index the samples.

    Args:
        shape, lead, tensors: as `layout.grid_of` takes them.
        dtype: of the arithmetic.
        over: what is summed: "sample" (the elements of one), "dim" (the batch), "sum" (all), or
            "" (nothing).
        copies: how many times the kernel itself walks the grid, by a leading dimension of `shape`.
        rowwise: rows must stay apart, for noise that differs between them.
        heavy: the arithmetic holds so much that the tiles must be half as large.
        extra: one more operand, a view of the samples; its `div` is set here.
    """
    grid = grid_of(shape, lead, tensors)
    rows, cols, segments = grid.rows // copies, grid.cols, grid.segments
    views = (*grid.views, extra and extra._replace(div=segments))
    if over in ("", "sum") and not rowwise and all(_mergeable(v, rows, cols) for v in views):
        views = tuple(v and _merged(v, rows, cols) for v in views)
        rows, cols, segments = 1, rows * cols, 1
    tile = _TILE // (1 if dtype == torch.float32 else 2) // (2 if heavy else 1)
    width = min(triton.next_power_of_2(max(cols, 16)), tile)
    down = rows // segments if over == "dim" else rows
    height = min(triton.next_power_of_2(max(down, 1)), tile // width)
    row_tiles, col_tiles = _tiles(down, height), _tiles(cols, width)
    splits = 1
    if over == "sample":
        if row_tiles < _ROWS_ENOUGH:
            splits = min(col_tiles, _tiles(_PROGRAMS, row_tiles))
        programs = row_tiles * splits
    elif over == "dim":
        columns = segments * col_tiles
        # Eight tiles to a program before another one is worth its partial sums.
        splits = min(_tiles(row_tiles, 8), _tiles(_PROGRAMS, columns))
        programs = columns * splits
    else:
        programs = row_tiles * col_tiles
        if over == "sum":
            programs = min(programs, _PROGRAMS) if programs > _few(tile) else 1
    meta = {
        "ROWS": height,
        "COLS": width,
        "GROUP": 8 if any(_half(v) for v in views) else 4,
        "VEC": _vector(cols, views),
        "WIDE": _wide(rows * copies, cols, views),
        "DTYPE": tl.float64 if dtype == torch.float64 else tl.float32,
        "num_warps": max(1, height * width * _WARPS // tile),
        # Triton 3.10 turns it off unless asked.
        "enable_fp_fusion": True,
    }
    operands = tuple(_operand(v, rows * copies, meta["VEC"]) for v in views)
    return Work(rows, cols, segments, row_tiles, col_tiles, splits, programs, operands, meta)


def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **meta: Any) -> None:
    """Starts `programs` of `kernel` on `device`, which need not be the current one."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, **meta)
    else:
        kernel[(programs,)](*args, **meta)


def _few(tile: int) -> int:
    # As many tiles as one program takes in less time than a second launch: some 3 us.
    return 8192 // tile


def _tiles(size: int, tile: int) -> int:
    return max(1, -(-size // tile))


def _mergeable(view: View | None, rows: int, cols: int) -> bool:
    if view is None:
        return True
    _, div, mod, row_stride, col_stride = view
    if col_stride == 0 and (mod == 1 or row_stride == 0):
        return True
    return div == 1 and mod % rows == 0 and row_stride == cols and (col_stride == 1 or cols == 1)


def _merged(view: View, rows: int, cols: int) -> View:
    if view.col_stride == 0 and (view.mod == 1 or view.row_stride == 0):
        return view._replace(div=1, mod=1, row_stride=0)
    return View(view.tensor, 1, view.mod // rows, rows * cols, 1)


def _operand(view: View | None, rows: int, vector: int) -> Operand:
    """An operand for `load`, its kind told by its length, which the kernels are compiled for.

    (pointer, row_stride): moves along the columns, a row to each of the grid's;
    (pointer, row_stride, div, mod): one value per row; and with a fifth, unused: moves along the
    columns, and rows repeat. The row stride of what moves is in units of `vector` elements:
    multiplied by that constant in the kernel it is known to be aligned, which an argument that is
    a multiple of 4 but not of 16 is not.
    """
    if view is None:
        return None
    tensor, div, mod, row_stride, col_stride = view
    if not col_stride:
        return (tensor, row_stride, div, mod)
    units = row_stride // vector
    return (tensor, units) if div == 1 and mod >= rows else (tensor, units, div, mod, 0)


def _vector(cols: int, views: Sequence[View | None]) -> int:
    """The power of two up to 16 that every row's start is a multiple of."""
    every = [cols, *(v.row_stride for v in views if v is not None and v.col_stride)]
    return math.gcd(16, *every)


def _half(view: View | None) -> bool:
    return view is not None and view.col_stride != 0 and view.tensor.itemsize == 2


def _wide(rows: int, cols: int, views: Sequence[View | None]) -> bool:
    """Whether any place needs 64 bits; a tile may reach past the end of the grid."""
    reach = [rows * cols, *((v.mod - 1) * v.row_stride + cols for v in views if v is not None)]
    return max(reach) + 2 * _TILE >= 1 << 31


@triton.jit
def tile_row(tile, segments, segment, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """A tile's rows: a scalar where it has one, else `[ROWS, 1]`; every segments-th from one on."""
    row = tile * ROWS
    if WIDE:
        row = row.to(tl.int64)
    if ROWS > 1:
        row = row + tl.arange(0, ROWS)[:, None]
    return row * segments + segment


@triton.jit
def tile_first(tile, COLS: tl.constexpr, WIDE: tl.constexpr):
    """A tile's first column."""
    return tile.to(tl.int64) * COLS if WIDE else tile * COLS


@triton.jit
def tile_live(columns, live_row, cols, ROWS: tl.constexpr):
    """Which of a tile's places are on the grid."""
    # A lone row is; and Triton's interpreter cannot spread a scalar bool over a tile.
    return columns < cols if ROWS == 1 else live_row & (columns < cols)


@triton.jit
def tile_at(
    tile, col_tiles, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr, WIDE: tl.constexpr
):
    """A tile's rows, first column and columns in the whole grid, and its live rows and places."""
    row = tile_row(tile // col_tiles, 1, 0, ROWS, WIDE)
    first = tile_first(tile % col_tiles, COLS, WIDE)
    columns = first + tl.arange(0, COLS)[None, :]
    live_row = row < rows
    return row, first, columns, live_row, tile_live(columns, live_row, cols, ROWS)


@triton.jit
def load(view, row, col, live, live_row, VEC: tl.constexpr, GROUP: tl.constexpr):
    """An operand's tile, or its one value per row where it does not move along the columns."""
    if len(view) > 2:
        row = row // view[2] % view[3]
    if len(view) != 4:
        if view[0].dtype.element_ty.primitive_bitwidth <= 8:
            # Bytes are read as many at a time as the wider operands beside them, which otherwise
            # would pass through shared memory: written so, GROUP is what the compiler sees.
            col = (col // GROUP) * GROUP + col % GROUP
        return tl.load(view[0] + (row * (view[1] * VEC) + col), mask=live, other=0)
    else:
        return tl.load(view[0] + row * view[1], mask=live_row, other=0)
