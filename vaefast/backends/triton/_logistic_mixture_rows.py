"""The kernel of mixtures of discretised logistics, in the packed layout of PixelCNN++."""

from __future__ import annotations

import triton
import triton.language as tl

from ._math import exp, tanh_and_slope
from ._softmax_rows import position, target_place
from .likelihoods.pixels import bin_nll, level_of


@triton.jit
def logistic_mixture_nll(
    loss, grad, theta, target, mask, weight, rows, inner, row_stride, class_stride, target_rows,
    slope: tl.float64, shift: tl.float64, low: tl.float64, width: tl.float64, top: tl.float64,
    least: tl.float64, log_width: tl.float64, factor: tl.float64, grad_factor: tl.float64,
    MIXTURES: tl.constexpr, CHANNELS: tl.constexpr, ALONE: tl.constexpr, VEC: tl.constexpr,
    ROW_VEC: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr, CLASSES: tl.constexpr,
    POSITIONS: tl.constexpr,
):  # fmt: skip
    # loss: a value per position; theta and grad: [rows, size, inner], size = MIXTURES (1 + 3
    # groups per channel, or 2 for one); target: [target_rows, CHANNELS, inner]; mask, weight:
    # [target_rows, inner]. A tile holds all mixtures, [CLASSES, POSITIONS].
    inner = inner * VEC
    EACH: tl.constexpr = 3 if CHANNELS > 1 else 2
    row, at, live = position(tl.program_id(0), rows, inner, ALONE, POSITIONS)
    m = tl.arange(0, CLASSES)[:, None]
    m = m.to(tl.int64) if WIDE else m
    here = (m < MIXTURES) & live[None, :]
    by = class_stride * VEC
    source = (theta + row * (row_stride * ROW_VEC) + at)[None, :] + m * by
    step = MIXTURES * by
    numbers = (
        tl.full((), slope, DTYPE),
        tl.full((), shift, DTYPE),
        tl.full((), low, DTYPE),
        tl.full((), width, DTYPE),
        tl.full((), top, DTYPE),
        tl.full((), log_width, DTYPE),
    )
    least = tl.full((), least, DTYPE)
    logits = tl.load(source, mask=here, other=0.0).to(DTYPE)
    logits = tl.where(m < MIXTURES, logits, float("-inf"))
    pixels = target + row % target_rows * (CHANNELS * inner) + at
    x0, level0 = _pixel(pixels, live, numbers, DTYPE)
    found0 = _bin(x0, level0, source + step, 0.0, step, here, numbers, least, DTYPE)
    losses = found0[0]
    if CHANNELS == 3:
        x1, level1 = _pixel(pixels + inner, live, numbers, DTYPE)
        x2, level2 = _pixel(pixels + 2 * inner, live, numbers, DTYPE)
        k0, _, slope0 = tanh_and_slope(tl.load(source + 3 * step, mask=here, other=0.0).to(DTYPE))
        k1, _, slope1 = tanh_and_slope(tl.load(source + 6 * step, mask=here, other=0.0).to(DTYPE))
        k2, _, slope2 = tanh_and_slope(tl.load(source + 9 * step, mask=here, other=0.0).to(DTYPE))
        found1 = _bin(
            x1, level1, source + 4 * step, k0 * x0[None, :], step, here, numbers, least, DTYPE
        )
        shift = k1 * x0[None, :] + k2 * x1[None, :]
        found2 = _bin(x2, level2, source + 7 * step, shift, step, here, numbers, least, DTYPE)
        losses += found1[0] + found2[0]
    # -log sum_m softmax(logits)_m e^-loss_m.
    joint = logits - losses
    highest = tl.max(logits, 0)
    joint_highest = tl.max(joint, 0)
    p = exp(logits - highest[None, :])
    q = exp(joint - joint_highest[None, :])
    prior = tl.sum(p, 0)
    both = tl.sum(q, 0)
    value = (highest - joint_highest) + tl.log(prior / both)
    own = target_place(row, at, target_rows, inner)
    keep = live
    scale = tl.full((POSITIONS,), grad_factor, DTYPE)
    if mask is not None:
        keep = live & (tl.load(mask + own, mask=live, other=0) != 0)
    if weight is not None:
        w = tl.load(weight + own, mask=live, other=0.0).to(DTYPE)
        value *= w
        scale *= w
    value = tl.where(keep, value * tl.full((), factor, DTYPE), 0.0)
    tl.store(loss + row * inner + at, value, mask=live)
    if grad is not None:
        SIZE: tl.constexpr = MIXTURES * (1 + EACH * CHANNELS)
        to = (grad + row * (SIZE * inner) + at)[None, :] + m * inner
        over = MIXTURES * inner
        share = q * (scale / both)[None, :]
        g = p * (scale / prior)[None, :] - share
        tl.store(to, tl.where(keep[None, :], g, 0.0), mask=here)
        # A component without a share may have a derivative that is not finite.
        share = tl.where(keep[None, :], share, 0.0)
        _put(to + over, found0[1], share, here)
        _put(to + 2 * over, found0[2], share, here)
        if CHANNELS == 3:
            _put(to + 4 * over, found1[1], share, here)
            _put(to + 5 * over, found1[2], share, here)
            _put(to + 7 * over, found2[1], share, here)
            _put(to + 8 * over, found2[2], share, here)
            _put(to + 3 * over, found1[1] * x0[None, :] * slope0, share, here)
            _put(to + 6 * over, found2[1] * x0[None, :] * slope1, share, here)
            _put(to + 9 * over, found2[1] * x1[None, :] * slope2, share, here)


@triton.jit
def _pixel(place, live, numbers, DTYPE: tl.constexpr):
    """Pixels [POSITIONS] in the units of the means, and their levels."""
    level = level_of(tl.load(place, mask=live, other=0).to(DTYPE), numbers)
    return level * numbers[3] + numbers[2], level


@triton.jit
def _bin(x, level, means, shift, step, here, numbers, least, DTYPE: tl.constexpr):
    """A channel's loss by each component, and its derivatives in mean and log-scale."""
    mean = tl.load(means, mask=here, other=0.0).to(DTYPE) + shift
    raw = tl.load(means + step, mask=here, other=0.0).to(DTYPE)
    log_scale = tl.where(raw < least, least, raw)
    level = level[None, :] + tl.zeros_like(mean)
    value, to_mean, to_scale = bin_nll(
        x[None, :] - mean, 0.5 * numbers[3], numbers[5], log_scale, level <= 0.0,
        level >= numbers[4],
    )  # fmt: skip
    return value, to_mean, tl.where(raw < least, 0.0, to_scale)


@triton.jit
def _put(place, slope, share, here):
    tl.store(place, tl.where(share == 0.0, 0.0, slope * share), mask=here)
