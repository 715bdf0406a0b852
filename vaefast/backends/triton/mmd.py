"""`mmd` by Triton: pairs of points in tiles, the gradients made with the value."""

from __future__ import annotations

import ctypes

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._options import MmdOptions
from ._grid import launch
from ._math import exp
from ._pairs import pair_meta, shares, tile
from ._sums import total


def mmd(x: Tensor, y: Tensor, options: MmdOptions, need: list[bool]) -> list[Tensor]:
    """The squared discrepancy and its gradients in those of x and y that `need` asks for."""
    x, y = x.contiguous(), y.contiguous()
    within_x, within_y, across, constant = options.factors(x.shape[0], y.shape[0])
    value = x.new_empty(())
    cut_x, cut_y = _split(x, y), _split(y, x)
    counts = [tiles * splits for tiles, splits in (cut_x, cut_y)]
    parts = x.new_empty(sum(counts), dtype=torch.float64)
    of_x, of_y = parts.split(counts)
    # The pairs of x and y are counted where x is the one with the rows.
    grad_x = _side(of_x, x, y, options, cut_x, (within_x, across, constant), 2, need[0])
    grad_y = _side(of_y, y, x, options, cut_y, (within_y, across, 0.0), int(need[1]), need[1])
    total(parts[None], value.view(1), 1.0)
    return [value, *(g for g in (grad_x, grad_y) if g is not None)]


def _split(own: Tensor, other: Tensor) -> tuple[int, int]:
    """Tiles of points, and shares of all that they are paired with."""
    side = pair_meta(own, own)["SIDE"]
    tiles, splits, _ = shares(own, max(own, other, key=len), side)
    return tiles, splits


def _side(
    parts: Tensor,
    own: Tensor,
    other: Tensor,
    options: MmdOptions,
    cut: tuple[int, int],
    factors: tuple[float, float, float],
    mode: int,
    wanted: bool,
) -> Tensor | None:
    """The gradient in `own`, if wanted; to `parts` go partial sums of the value.

    `cut` is what `_split` gives. `mode` says what becomes of the pairs with `other`: 0 nothing, 1
    they go into the gradient, 2 into the value too.
    """
    # Left alone, ptxas spills up to four values for one more program to a multiprocessor.
    most = 128 if own.dtype == torch.float32 else None
    meta = {**pair_meta(own, own), "maxnreg": most}
    (points, dims), (tiles, splits) = own.shape, cut
    dim_blocks = -(-dims // meta["DIMS"]) if wanted else 1
    grads = own.new_empty((splits, points, dims)) if wanted else None
    in_share = [triton.cdiv(triton.cdiv(len(t), meta["SIDE"]), splits) for t in (own, other)]
    sizes = (points, len(other), dims, dim_blocks, splits, *in_share)
    launch(
        _pairs,
        tiles * splits * dim_blocks,
        own.device,
        *(parts, grads, own, other, *sizes, *factors, *_in_two(options.scales)),
        **{"RBF": options.rbf, "OTHER": mode, **meta},
    )
    if grads is None or splits == 1:
        return None if grads is None else grads[0]
    grad = torch.empty_like(own)
    total(grads.view(splits, -1).t(), grad.view(-1), 1.0)
    return grad


def _in_two(numbers: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each number as the float32 next to it and the rest: what is in a tuple travels in float32.

    Not constants of the kernel, which scales taken from the data would compile at every step.
    """
    upper = tuple([ctypes.c_float(x).value for x in numbers])
    return upper, tuple([x - u for x, u in zip(numbers, upper, strict=True)])


@triton.jit
def _pairs(
    parts, grads, own, other, rows, others, dims, dim_blocks, splits, own_blocks, other_blocks,
    within: tl.float64, across: tl.float64, constant: tl.float64, scales, rests,
    RBF: tl.constexpr, OTHER: tl.constexpr,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    # parts: one sum per tile and split; grads: [splits, rows, dims].
    pid = tl.program_id(0)
    split = pid // dim_blocks % splits
    row = (pid // (dim_blocks * splits)).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    d = pid % dim_blocks * DIMS + tl.arange(0, DIMS)
    value, pull = _against(
        own, own, rows, rows, dims, row, d, split * own_blocks, (split + 1) * own_blocks,
        scales, rests, True, grads is not None, RBF, SIDE, DIMS, DTYPE,
    )  # fmt: skip
    result = tl.sum(value) * tl.full((), within, tl.float64)
    # Each pair of one sample is met from both of its points.
    pull = pull * tl.full((), 4.0 * within, DTYPE)
    if OTHER > 0:
        value, more = _against(
            own, other, rows, others, dims, row, d, split * other_blocks,
            (split + 1) * other_blocks, scales, rests, False, grads is not None, RBF, SIDE, DIMS,
            DTYPE,
        )  # fmt: skip
        pull += more * tl.full((), 2.0 * across, DTYPE)
        if OTHER > 1:
            result += tl.sum(value) * tl.full((), across, tl.float64)
    result += tl.where(pid == 0, tl.full((), constant, tl.float64), 0.0)
    tl.store(parts + pid // dim_blocks, result, mask=pid % dim_blocks == 0)
    if grads is not None:
        place = (split.to(tl.int64) * rows + row)[:, None] * dims + d[None, :]
        tl.store(grads + place, pull, mask=(row < rows)[:, None] & (d < dims)[None, :])


@triton.jit
def _against(
    points, other, rows, others, dims, row, d, begin, end, scales, rests,
    SAME: tl.constexpr, GRADS: tl.constexpr, RBF: tl.constexpr,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The kernel of the rows' points with blocks `begin` to `end` of `other`, summed for each, and
    its slope times their difference, [SIDE, DIMS]."""
    value = tl.zeros((SIDE,), tl.float64)
    pull = tl.zeros((SIDE, DIMS), DTYPE)
    for block in range(begin, end):
        at = tl.full((), block, tl.int64) * SIDE + tl.arange(0, SIDE)
        squared = tl.zeros((SIDE, SIDE), DTYPE)
        for first in range(0, dims, DIMS):
            c = first + tl.arange(0, DIMS)
            t = tile(points, row, c, rows, dims)[:, None, :]
            t = t - tile(other, at, c, others, dims)[None, :, :]
            squared += tl.sum(t * t, 2)
        k, slope = _kernel(squared, scales, rests, RBF)
        live = (row < rows)[:, None] & (at < others)[None, :]
        if SAME:
            live = live & (row[:, None] != at[None, :])
        value += tl.sum(tl.where(live, k, 0.0), 1).to(tl.float64)
        if GRADS:
            slope = tl.where(live, slope, 0.0)
            t = tile(points, row, d, rows, dims)[:, None, :]
            t = t - tile(other, at, d, others, dims)[None, :, :]
            pull += tl.sum(slope[:, :, None] * t, 1)
    return value, pull


@triton.jit
def _kernel(squared, scales, rests, RBF: tl.constexpr):
    """The sums over the scales of the kernel and of its derivative."""
    k = tl.zeros_like(squared)
    slope = tl.zeros_like(squared)
    for i in tl.static_range(len(scales)):
        scale = tl.full((), scales[i], squared.dtype) + tl.full((), rests[i], squared.dtype)
        if RBF:
            down = -1.0 / scale
            one = exp(squared * down)
            k += one
            slope += one * down
        else:
            near = 1.0 / (squared + scale)
            one = near * scale
            k += one
            slope -= one * near
    return k, slope
