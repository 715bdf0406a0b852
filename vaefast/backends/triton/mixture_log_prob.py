"""`mixture_log_prob` by Triton: pairs of points and components in tiles, never all at once."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grid import launch
from ._math import exp, whitened, whitening_root
from ._pairs import dense, log_normal, pair_meta, share, shares, tile


def mixture_log_prob(
    z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The log density `[B]`, and what the backward pass needs of it."""
    tensors = dense(z, mu, logvar, log_weights)
    meta = pair_meta(z, mu)
    tiles, splits, of_split = shares(z, mu, meta["SIDE"])
    part = z.new_empty((splits, z.shape[0]), dtype=torch.float64)
    given = (*tensors, *_sizes(z, mu), splits, of_split)
    launch(_forward, tiles * splits, z.device, part, *given, **meta)
    joint = part[0] if splits == 1 else torch.logsumexp(part, 0)
    return joint.to(z.dtype), joint


def mixture_log_prob_backward(
    upstream: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    joint: Tensor,
) -> list[Tensor]:
    """The gradients in z, mu, logvar and, where there are any, the weights."""
    tensors = dense(z, mu, logvar, log_weights)
    grads = [torch.empty_like(t) for t in tensors if t is not None]
    meta = pair_meta(z, mu)
    sizes, dim_blocks = _sizes(z, mu), -(-mu.shape[1] // meta["DIMS"])
    given = (upstream.contiguous(), joint, *tensors, *sizes, dim_blocks)
    points = -(-z.shape[0] // meta["SIDE"]) * dim_blocks
    components = -(-mu.shape[0] // meta["SIDE"]) * dim_blocks
    launch(_points, points, z.device, grads[0], *given, **meta)
    weights = grads[3] if log_weights is not None else None
    launch(_components, components, z.device, grads[1], grads[2], weights, *given, **meta)
    return grads


def _sizes(z: Tensor, mu: Tensor) -> tuple[float, ...]:
    # The last is what every component's logarithm has in common where there are no weights.
    return (z.shape[0], *mu.shape, -math.log(mu.shape[0]))


@triton.jit
def _forward(
    part, z, mu, logvar, log_weights, rows, count, dims, shared: tl.float64, splits, blocks,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    # part: [splits, rows], the log density under `blocks` blocks of components.
    pid = tl.program_id(0)
    split = pid % splits
    row = (pid // splits).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    highest = tl.full((SIDE,), float("-inf"), DTYPE)
    total = tl.zeros((SIDE,), DTYPE)
    base = tl.zeros((SIDE,), DTYPE)
    for block in range(split * blocks, (split + 1) * blocks):
        own = tl.full((), block, tl.int64) * SIDE + tl.arange(0, SIDE)
        pairs = _weighted(
            z, mu, logvar, log_weights, row, own, rows, count, dims, shared, SIDE, DIMS, DTYPE
        )
        new = tl.maximum(highest, tl.max(pairs, 1))
        # Of -inf alone: any finite number gives 0.
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * exp(highest - base) + tl.sum(exp(pairs - base[:, None]), 1)
        highest = new
    place = part + split.to(tl.int64) * rows + row
    tl.store(place, base.to(tl.float64) + tl.log(total.to(tl.float64)), mask=row < rows)


@triton.jit
def _points(
    grad,
    upstream, joint, z, mu, logvar, log_weights, rows, count, dims, shared: tl.float64, dim_blocks,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = (pid // dim_blocks).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    d = pid % dim_blocks * DIMS + tl.arange(0, DIMS)
    g = tl.load(upstream + row, mask=row < rows, other=0.0)
    lse = tl.load(joint + row, mask=row < rows, other=0.0)
    x = tile(z, row, d, rows, dims)
    acc = tl.zeros((SIDE, DIMS), DTYPE)
    for first in range(0, count, SIDE):
        own = tl.full((), first, tl.int64) + tl.arange(0, SIDE)
        pairs = _weighted(
            z, mu, logvar, log_weights, row, own, rows, count, dims, shared, SIDE, DIMS, DTYPE
        )
        p = share(pairs, lse)
        t = x[:, None, :] - tile(mu, own, d, count, dims)[None, :, :]
        root = whitening_root(tile(logvar, own, d, count, dims))[None, :, :]
        acc += tl.sum(p[:, :, None] * whitened(t, root) * root * root, 1)
    place = grad + row[:, None] * dims + d[None, :]
    tl.store(place, -acc * g[:, None], mask=(row < rows)[:, None] & (d < dims)[None, :])


@triton.jit
def _components(
    grad_mu, grad_logvar, grad_weights,
    upstream, joint, z, mu, logvar, log_weights, rows, count, dims, shared: tl.float64, dim_blocks,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    own = (pid // dim_blocks).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    d = pid % dim_blocks * DIMS + tl.arange(0, DIMS)
    m = tile(mu, own, d, count, dims)
    root = whitening_root(tile(logvar, own, d, count, dims))
    to_mu = tl.zeros((SIDE, DIMS), DTYPE)
    to_logvar = tl.zeros((SIDE, DIMS), DTYPE)
    to_weights = tl.zeros((SIDE,), DTYPE)
    for first in range(0, rows, SIDE):
        row = tl.full((), first, tl.int64) + tl.arange(0, SIDE)
        pairs = _weighted(
            z, mu, logvar, log_weights, row, own, rows, count, dims, shared, SIDE, DIMS, DTYPE
        )
        g = tl.load(upstream + row, mask=row < rows, other=0.0)
        lse = tl.load(joint + row, mask=row < rows, other=0.0)
        p = share(pairs, lse) * g[:, None]
        p = tl.where((row < rows)[:, None], p, 0.0)
        near = whitened(tile(z, row, d, rows, dims)[:, None, :] - m[None, :, :], root[None, :, :])
        p_near = p[:, :, None] * near
        to_mu += tl.sum(p_near, 0)
        # In this order: the square may overflow where p is 0.
        to_logvar += tl.sum(p_near * near - p[:, :, None], 0)
        to_weights += tl.sum(p, 0)
    place = own[:, None] * dims + d[None, :]
    live = (own < count)[:, None] & (d < dims)[None, :]
    tl.store(grad_mu + place, whitened(to_mu, root), mask=live)
    tl.store(grad_logvar + place, 0.5 * to_logvar, mask=live)
    if grad_weights is not None:
        # As a vector: Triton's interpreter cannot spread a scalar bool.
        first_block = tl.zeros((SIDE,), tl.int32) + pid % dim_blocks == 0
        tl.store(grad_weights + own, to_weights, mask=(own < count) & first_block)


@triton.jit
def _weighted(
    z, mu, logvar, log_weights, row, own, rows, count, dims, shared,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """log w + log N(z; mu, e^logvar) of a tile, [SIDE, SIDE]; -inf past the last component."""
    value = log_normal(z, mu, logvar, row, own, rows, count, dims, SIDE, DIMS, DTYPE)
    if log_weights is not None:
        value += tl.load(log_weights + own, mask=own < count, other=0.0)[None, :]
    else:
        value += tl.full((), shared, DTYPE)
    return tl.where((own < count)[None, :], value, float("-inf"))
