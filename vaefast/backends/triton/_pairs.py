"""What the kernels over all pairs of points and Gaussians share: tiles, densities, work shares."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import exp, whitening_root

# Elements of a tile [points, components, dimensions], half of that in float64, where more spill;
# and the most dimensions of one.
_TILE, _MOST_DIMS = 4096, 64
# Programs that the components are shared out between where there are few points.
_PROGRAMS, _MOST_SPLITS = 512, 64


def dense(*tensors: Tensor | None) -> list[Tensor | None]:
    """Each of them in one piece."""
    return [None if t is None else t.contiguous() for t in tensors]


def pair_meta(z: Tensor, mu: Tensor) -> dict[str, Any]:
    """What a kernel over the pairs of z and mu is compiled for."""
    dims = min(_MOST_DIMS, triton.next_power_of_2(mu.shape[1]))
    wide = z.dtype == torch.float64
    return {
        # As many points as components.
        "SIDE": 1 << (int(math.log2(_TILE // (2 if wide else 1) // dims)) // 2),
        "DIMS": dims,
        "DTYPE": tl.float64 if wide else tl.float32,
        "num_warps": 4,
        # Triton 3.10 turns it off unless asked.
        "enable_fp_fusion": True,
    }


def shares(z: Tensor, mu: Tensor, side: int) -> tuple[int, int, int]:
    """Tiles of points, shares of the components, and blocks of components in a share."""
    tiles, blocks = -(-z.shape[0] // side), -(-mu.shape[0] // side)
    splits = max(1, min(blocks, _MOST_SPLITS, _PROGRAMS // tiles))
    return tiles, splits, -(-blocks // splits)


@triton.jit
def tile(tensor, index, d, count, dims):
    """A tile of a [count, dims] tensor, 0 beyond it."""
    live = (index < count)[:, None] & (d < dims)[None, :]
    return tl.load(tensor + index[:, None] * dims + d[None, :], mask=live, other=0.0)


@triton.jit
def log_normal(
    z, mu, logvar, row, own, rows, count, dims,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """log N(z; mu, e^logvar) over all dimensions, [SIDE, SIDE]."""
    total = tl.zeros((SIDE, SIDE), DTYPE)
    for first in range(0, dims, DIMS):
        d = first + tl.arange(0, DIMS)
        t = tile(z, row, d, rows, dims)[:, None, :] - tile(mu, own, d, count, dims)[None, :, :]
        lv = tile(logvar, own, d, count, dims)
        root = whitening_root(lv)[None, :, :]
        # Not cut off: the density of what is infinitely far is 0.
        near = t * root * root
        total += tl.sum(near * near, 2) + tl.sum(lv, 1)[None, :]
    # log(2 pi)
    return -0.5 * (total + tl.full((), dims, DTYPE) * 1.8378770664093453)


@triton.jit
def share(pairs, joint):
    """e^(pairs - joint): both are large far from everything, and differ exactly in double."""
    return exp((pairs.to(tl.float64) - joint[:, None]).to(pairs.dtype))
