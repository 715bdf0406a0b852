"""`tc_terms` by Triton: pairs of points and posteriors in tiles, made anew in the backward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._options import Weighing
from ._grid import launch
from ._math import exp, finite, whitened, whitening_root
from ._pairs import dense, log_normal, pair_meta, share, shares, tile

# log(2 pi)
_LOG_2PI = tl.constexpr(1.8378770664093453)


def tc_terms(
    z: Tensor, mu: Tensor, logvar: Tensor, weighing: Weighing
) -> tuple[Tensor, Tensor, Tensor]:
    """The terms `[3, B]`, and the sums `[B]` and `[B, D]` that the backward pass needs."""
    tensors = dense(z, mu, logvar)
    meta = _meta(z, mu, weighing)
    tiles, splits, of_split = shares(z, mu, meta["SIDE"])
    (points, dims), dim_blocks = z.shape, -(-z.shape[1] // meta["DIMS"])
    parts = (
        z.new_empty((splits, points), dtype=torch.float64),
        z.new_empty((splits, points, dims), dtype=torch.float64),
    )
    joint = z.new_empty(points, dtype=torch.float64)
    marginals, terms = z.new_empty(z.shape), z.new_empty((3, points))
    sizes = (points, mu.shape[0], dims, dim_blocks)
    given = (*parts, *tensors, *sizes, *_weights(weighing), splits, of_split)
    launch(_sums, tiles * splits * dim_blocks, z.device, *given, **meta)
    del meta["WEIGHTED"]
    given = (terms, joint, marginals, *parts, *tensors, *sizes, weighing.first, splits)
    launch(_terms, tiles, z.device, *given, **meta)
    return terms, joint, marginals


def tc_terms_backward(
    upstream: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    joint: Tensor,
    marginals: Tensor,
    weighing: Weighing,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in z, mu and logvar."""
    tensors = dense(z, mu, logvar)
    grads = (z.new_empty(z.shape), mu.new_empty(mu.shape), logvar.new_empty(logvar.shape))
    meta = _meta(z, mu, weighing)
    dim_blocks, side = -(-z.shape[1] // meta["DIMS"]), meta["SIDE"]
    given = (
        *(upstream.contiguous(), joint, marginals),
        *(*tensors, z.shape[0], *mu.shape, dim_blocks, *_weights(weighing)),
    )
    launch(_points, -(-z.shape[0] // side) * dim_blocks, z.device, grads[0], *given, **meta)
    launch(_posteriors, -(-mu.shape[0] // side) * dim_blocks, z.device, *grads[1:], *given, **meta)
    return grads


def _meta(z: Tensor, mu: Tensor, weighing: Weighing) -> dict[str, Any]:
    weighted = weighing.own != 1 or weighing.stratum != 1
    # Left alone, ptxas spills a value or two for one more program to a multiprocessor.
    return {**pair_meta(z, mu), "WEIGHTED": weighted, "maxnreg": 224}


def _weights(weighing: Weighing) -> tuple[float, ...]:
    """The first point's posterior, and the logarithms of every weight, its own, its successor's."""
    own, stratum = (math.log(w) if w else -math.inf for w in (weighing.own, weighing.stratum))
    return (weighing.first, weighing.log_weight, own, stratum)


@triton.jit
def _sums(
    joint, marginals, z, mu, logvar, rows, count, dims, dim_blocks,
    first, log_weight: tl.float64, own: tl.float64, stratum: tl.float64, splits, blocks,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    # joint: [splits, rows]; marginals: [splits, rows, dims]; of `blocks` blocks of posteriors.
    pid = tl.program_id(0)
    split = pid // dim_blocks % splits
    row = (pid // (dim_blocks * splits)).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    d = pid % dim_blocks * DIMS + tl.arange(0, DIMS)
    x = tile(z, row, d, rows, dims)
    highest = tl.full((SIDE,), float("-inf"), DTYPE)
    total = tl.zeros((SIDE,), DTYPE)
    base = tl.zeros((SIDE,), DTYPE)
    highests = tl.full((SIDE, DIMS), float("-inf"), DTYPE)
    totals = tl.zeros((SIDE, DIMS), DTYPE)
    bases = tl.zeros((SIDE, DIMS), DTYPE)
    for block in range(split * blocks, (split + 1) * blocks):
        at = tl.full((), block, tl.int64) * SIDE + tl.arange(0, SIDE)
        weights = _log_weights(row, at, count, first, log_weight, own, stratum, WEIGHTED, DTYPE)
        pairs = weights + log_normal(z, mu, logvar, row, at, rows, count, dims, SIDE, DIMS, DTYPE)
        new = tl.maximum(highest, tl.max(pairs, 1))
        # Of -inf alone: any finite number gives 0.
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * exp(highest - base) + tl.sum(exp(pairs - base[:, None]), 1)
        highest = new
        each = _each(x, mu, logvar, at, d, count, dims, weights)
        news = tl.maximum(highests, tl.max(each, 1))
        bases = tl.where(news == float("-inf"), 0.0, news)
        totals = totals * exp(highests - bases) + tl.sum(exp(each - bases[:, None, :]), 1)
        highests = news
    here = row < rows
    place = split.to(tl.int64) * rows + row
    first_block = tl.zeros((SIDE,), tl.int32) + pid % dim_blocks == 0
    value = base.to(tl.float64) + tl.log(total.to(tl.float64))
    tl.store(joint + place, value, mask=here & first_block)
    value = bases.to(tl.float64) + tl.log(totals.to(tl.float64))
    places = place[:, None] * dims + d[None, :]
    tl.store(marginals + places, value, mask=here[:, None] & (d < dims)[None, :])


@triton.jit
def _terms(
    terms, joint, marginals, joints, parts, z, mu, logvar, rows, count, dims, dim_blocks,
    first, splits,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    # terms: [3, rows]; joint: [rows]; marginals: [rows, dims]; joints, parts: as `_sums` left them.
    row = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    here = row < rows
    log_qz = tl.full((SIDE,), float("-inf"), tl.float64)
    for split in range(splits):
        part = tl.load(joints + tl.full((), split, tl.int64) * rows + row, mask=here, other=0.0)
        log_qz = _added(log_qz, part)
    tl.store(joint + row, log_qz, mask=here)
    log_product = tl.zeros((SIDE,), tl.float64)
    log_qzx = tl.zeros((SIDE,), tl.float64)
    log_pz = tl.zeros((SIDE,), tl.float64)
    for block in range(dim_blocks):
        d = block * DIMS + tl.arange(0, DIMS)
        live = here[:, None] & (d < dims)[None, :]
        marginal = tl.full((SIDE, DIMS), float("-inf"), tl.float64)
        for split in range(splits):
            place = (tl.full((), split, tl.int64) * rows + row)[:, None] * dims + d[None, :]
            marginal = _added(marginal, tl.load(parts + place, mask=live, other=0.0))
        tl.store(marginals + row[:, None] * dims + d[None, :], marginal.to(DTYPE), mask=live)
        log_product += tl.sum(tl.where(live, marginal, 0.0), 1)
        x = tile(z, row, d, rows, dims)
        lv = tile(logvar, first + row, d, count, dims)
        t = x - tile(mu, first + row, d, count, dims)
        root = whitening_root(lv)
        near = whitened(t, root)
        log_qzx -= 0.5 * tl.sum((near * near + lv).to(tl.float64), 1)
        log_pz -= 0.5 * tl.sum((x * x).to(tl.float64), 1)
    constant = 0.5 * _LOG_2PI * tl.full((), dims, tl.float64)
    tl.store(terms + row, (log_qzx - constant - log_qz).to(DTYPE), mask=here)
    tl.store(terms + rows + row, (log_qz - log_product).to(DTYPE), mask=here)
    tl.store(terms + 2 * rows + row, (log_product - (log_pz - constant)).to(DTYPE), mask=here)


@triton.jit
def _points(
    grad, upstream, joint, marginals, z, mu, logvar, rows, count, dims, dim_blocks,
    first, log_weight: tl.float64, own: tl.float64, stratum: tl.float64,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = (pid // dim_blocks).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    d = pid % dim_blocks * DIMS + tl.arange(0, DIMS)
    x = tile(z, row, d, rows, dims)
    acc = tl.zeros((SIDE, DIMS), DTYPE)
    for start in range(0, count, SIDE):
        at = tl.full((), start, tl.int64) + tl.arange(0, SIDE)
        slope = _slopes(
            upstream, joint, marginals, z, mu, logvar, x, row, at, d, rows, count, dims,
            first, log_weight, own, stratum, SIDE, DIMS, DTYPE, WEIGHTED,
        )  # fmt: skip
        t = x[:, None, :] - tile(mu, at, d, count, dims)[None, :, :]
        root = whitening_root(tile(logvar, at, d, count, dims))
        near = whitened(t, root[None, :, :])
        acc += tl.sum(slope * near * finite(root * root)[None, :, :], 1)
    to_prior = tl.load(upstream + 2 * rows + row, mask=row < rows, other=0.0)
    live = (row < rows)[:, None] & (d < dims)[None, :]
    place = grad + row[:, None] * dims + d[None, :]
    tl.store(place, to_prior[:, None] * x - acc, mask=live)


@triton.jit
def _posteriors(
    grad_mu, grad_logvar, upstream, joint, marginals, z, mu, logvar, rows, count, dims, dim_blocks,
    first, log_weight: tl.float64, own: tl.float64, stratum: tl.float64,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    at = (pid // dim_blocks).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    d = pid % dim_blocks * DIMS + tl.arange(0, DIMS)
    m = tile(mu, at, d, count, dims)
    root = whitening_root(tile(logvar, at, d, count, dims))
    to_mu = tl.zeros((SIDE, DIMS), DTYPE)
    to_logvar = tl.zeros((SIDE, DIMS), DTYPE)
    for start in range(0, rows, SIDE):
        row = tl.full((), start, tl.int64) + tl.arange(0, SIDE)
        x = tile(z, row, d, rows, dims)
        slope = _slopes(
            upstream, joint, marginals, z, mu, logvar, x, row, at, d, rows, count, dims,
            first, log_weight, own, stratum, SIDE, DIMS, DTYPE, WEIGHTED,
        )  # fmt: skip
        slope = tl.where((row < rows)[:, None, None], slope, 0.0)
        near = whitened(x[:, None, :] - m[None, :, :], root[None, :, :])
        weighed = slope * near
        to_mu += tl.sum(weighed, 0)
        # In this order: the square may overflow where the slope is 0.
        to_logvar += tl.sum(weighed * near - slope, 0)
    live = (at < count)[:, None] & (d < dims)[None, :]
    place = at[:, None] * dims + d[None, :]
    tl.store(grad_mu + place, whitened(to_mu, root), mask=live)
    tl.store(grad_logvar + place, 0.5 * to_logvar, mask=live)


@triton.jit
def _slopes(
    upstream, joint, marginals, z, mu, logvar, x, row, at, d, rows, count, dims,
    first, log_weight, own, stratum,
    SIDE: tl.constexpr, DIMS: tl.constexpr, DTYPE: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """The derivative in each pair's log density per dimension, [points, posteriors, dims]."""
    here = row < rows
    to_mi = tl.load(upstream + row, mask=here, other=0.0)
    to_tc = tl.load(upstream + rows + row, mask=here, other=0.0)
    to_kl = tl.load(upstream + 2 * rows + row, mask=here, other=0.0)
    weights = _log_weights(row, at, count, first, log_weight, own, stratum, WEIGHTED, DTYPE)
    pairs = weights + log_normal(z, mu, logvar, row, at, rows, count, dims, SIDE, DIMS, DTYPE)
    lse = tl.load(joint + row, mask=here, other=0.0)
    of_joint = share(pairs, lse) * (to_tc - to_mi)[:, None]
    of_joint += tl.where(at[None, :] == (first + row)[:, None], to_mi[:, None], 0.0)
    each = _each(x, mu, logvar, at, d, count, dims, weights)
    lses = tile(marginals, row, d, rows, dims)
    of_marginals = exp(each - lses[:, None, :]) * (to_kl - to_tc)[:, None, None]
    return of_joint[:, :, None] + of_marginals


@triton.jit
def _each(x, mu, logvar, at, d, count, dims, weights):
    """log w + log N of a tile in each dimension."""
    lv = tile(logvar, at, d, count, dims)
    t = x[:, None, :] - tile(mu, at, d, count, dims)[None, :, :]
    root = whitening_root(lv)[None, :, :]
    # Not cut off: the density of what is infinitely far is 0.
    near = t * root * root
    return weights[:, :, None] - 0.5 * ((near * near + lv[None, :, :]) + _LOG_2PI)


@triton.jit
def _log_weights(
    row, at, count, first, log_weight, own, stratum, WEIGHTED: tl.constexpr, DTYPE: tl.constexpr
):
    """Each posterior's weight in each point's estimate; -inf past the last posterior."""
    value = tl.zeros((row.shape[0], at.shape[0]), DTYPE) + tl.full((), log_weight, DTYPE)
    if WEIGHTED:
        mine = (first + row)[:, None]
        after = at[None, :] == (mine + 1) % count
        more = tl.where(after, tl.full((), stratum, DTYPE), 0.0)
        value += tl.where(at[None, :] == mine, tl.full((), own, DTYPE), more)
    return tl.where((at < count)[None, :], value, float("-inf"))


@triton.jit
def _added(a, b):
    """log(e^a + e^b)."""
    top = tl.maximum(a, b)
    base = tl.where(top == float("-inf"), 0.0, top)
    return base + tl.log(exp(a - base) + exp(b - base))
