"""Pixels of a few levels, for Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from .._hardware import rcp
from .._math import exp_finite, finite, log1p_of, one_minus_exp
from ._base import heavy_form


@heavy_form
@triton.jit
def discretized_logistic(x, theta, numbers):
    """theta: loc, log_scale; numbers: a, b, level 0, bin, last level, log bin: level a x + b."""
    top = numbers[4]
    level = level_of(x, numbers)
    d = level * numbers[3] + numbers[2] - theta[0]
    return bin_nll(d, 0.5 * numbers[3], numbers[5], theta[1], level <= 0.0, level >= top)


@triton.jit
def level_of(x, numbers):
    """The level nearest to the pixel x, in the numbers of `discretized_logistic`."""
    # Adding it rounds to an integer.
    magic: tl.constexpr = 6755399441055744.0 if x.dtype == tl.float64 else 12582912.0
    nearest = (x * numbers[0] + numbers[1] + magic) - magic
    level = tl.where(nearest < 0.0, 0.0, nearest)
    # 0 x: an infinite pixel is no level, and gives NaN.
    return tl.where(level > numbers[4], numbers[4], level) + 0.0 * x


@triton.jit
def bin_nll(d, half_bin, log_bin, log_scale, first, last):
    """-log of the mass that a logistic gives to one bin, and its derivatives in loc, log_scale.

    With u, l the standardised edges and w = u - l it is sigmoid(u) sigmoid(-l) (1 - e^-w): -log of
    it is a sum of three positive terms. The first and last bin lack the terms of their open side.
    """
    # e^-s is (root root), which may overflow where times a distance it does not.
    root = exp_finite(-0.5 * log_scale)
    upper = finite((d + half_bin) * root * root)
    lower = finite((d - half_bin) * root * root)
    width = finite(2.0 * half_bin * root * root)
    inside = (first | last) == 0

    # softplus(-upper) and softplus(lower) with their derivatives from one exponential each, and
    # one logarithm for both: log(1 + e^u) + log(1 + e^l) is log1p(e^u + e^l + e^(u+l)).
    _, eu = one_minus_exp(tl.abs(upper))
    _, el = one_minus_exp(tl.abs(lower))
    qu = eu * rcp(1.0 + eu)
    ql = el * rcp(1.0 + el)
    eu = tl.where(last, 0.0, eu)
    el = tl.where(first, 0.0, el)
    grown = eu * el + (eu + el)
    over = tl.where(last | (upper > 0.0), 0.0, -upper)
    under = tl.where(first | (lower < 0.0), 0.0, lower)

    # log(1 - e^-w): by log1p where e^-w is small, and a bin far below the scale by its width's
    # logarithm, which is known even where w underflows.
    rise, left_out = one_minus_exp(width)
    narrow = width < (1e-200 if d.dtype == tl.float64 else 1e-20)
    mass = tl.where(narrow, log_bin - log_scale, log1p_of(-left_out, rise))

    beyond = tl.where(upper > 0.0, qu, 1.0 - qu)
    before = tl.where(lower > 0.0, 1.0 - ql, ql)
    # sigmoid(-u) - sigmoid(l) as the product that does not cancel, its sign that of -(u + l).
    both = finite(upper + lower)
    product = tl.where(both > 0.0, -((1.0 - beyond) * before), beyond * (1.0 - before))
    grew, _ = one_minus_exp(tl.abs(both))
    share = tl.where(narrow, 1.0, width * left_out * rcp(rise))
    middle = product * grew
    to_loc = tl.where(first, beyond, tl.where(last, -before, middle)) * root * root
    to_log_scale = (
        tl.where(last, 0.0, upper * beyond)
        - tl.where(first, 0.0, lower * before)
        + tl.where(inside, share, 0.0)
    )
    value = (over + under) + (log1p_of(grown, 1.0 + grown) - tl.where(inside, mass, 0.0))
    return value, to_loc, to_log_scale
