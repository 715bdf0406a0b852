"""Counts, for Triton: no difference of two large log Gammas anywhere.

With Stirling's formula taken out the large parts of every count likelihood combine by hand into its
deviance, and what is left is small: right for counts and dispersions of any size (Loader 2000,
"Fast and accurate computation of binomial probabilities", for the Poisson case).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._gamma import factorial_rest, stirling_rest
from .._hardware import rcp
from .._math import (
    exp_below,
    exp_minus,
    expm1_minus_x,
    log1p,
    log1p_of,
    log1p_unit,
    log_coarse,
    log_normal,
    minus_log1p_near,
    one_minus_exp,
)
from ._base import form, heavy_form


@form
@triton.jit
def poisson(x, theta, numbers):
    """theta: log rate; numbers: 1, or 0 to leave log x! out. x (e^r - 1 - r), r = log(rate / x)."""
    # Beyond this the rate is infinite, and x times its logarithm must not be.
    top: tl.constexpr = 710.0 if x.dtype == tl.float64 else 89.0
    log_rate = tl.minimum(theta[0], top, propagate_nan=tl.PropagateNan.ALL)
    rate = exp_below(log_rate)
    # Of 0 any finite number, which log_normal gives; in double only `tl.log` is there.
    least: tl.constexpr = 1e-300 if x.dtype == tl.float64 else 0.0
    log_x = log_normal(tl.maximum(x, least, propagate_nan=tl.PropagateNan.ALL))
    r = log_rate - log_x
    near = x * expm1_minus_x(r, 0.0)
    # Where it is as large as x or rate nothing cancels, and the ratio's exponential is not needed.
    far = (rate - x) - x * r
    edge: tl.constexpr = 1.0 if x.dtype == tl.float64 else 2.5
    full = tl.where(tl.abs(r) < edge, near, far) + factorial_rest(x, rcp(x), log_x)
    value = tl.where(x == 0.0, rate, tl.where(numbers[0] != 0.0, full, rate - x * log_rate))
    return tl.where(x < 0.0, float("nan"), value), rate - x


@form
@triton.jit
def poisson_rate(x, theta, numbers):
    """theta: rate; numbers: as above. x (b - log1p(b)), b = (rate - x) / x."""
    rate = theta[0]
    none = x == 0.0
    log_x = tl.log(x)
    b = (rate - x) / tl.where(none, 1.0, x)
    above = x > rate
    ratio = _log1p_ratio(tl.abs(rate - x), tl.where(above, rate, x))
    far = tl.where(above, b + ratio, b - ratio)
    rest = factorial_rest(x, 1.0 / x, tl.where(none, 0.0, log_x))
    full = x * tl.where(tl.abs(b) < 0.25, minus_log1p_near(b), far) + rest
    value = tl.where(numbers[0] != 0.0, full, rate - x * tl.log(rate))
    value = tl.where(x < 0.0, float("nan"), tl.where(none, rate, value))
    return value, tl.where(none, 1.0, (rate - x) / rate)


@heavy_form
@triton.jit
def negative_binomial(x, theta, numbers):
    """theta: mu, theta, the mean and the dispersion: variance mu + mu^2 / theta.

    numbers: what is added to mu, which may have underflowed.
    """
    return _negative_binomial(x, theta[0] + numbers[0], theta[1])


@heavy_form
@triton.jit
def zero_inflated_negative_binomial(x, theta, numbers):
    """theta: mu, theta, dropout logits pi. With n the negative binomial's loss, at 0

    -log1p(sigmoid(-pi) (e^-n - 1)), and where that nears log 0 softplus(pi) - logaddexp(pi, -n).
    numbers: as above.
    """
    n, to_mu, to_theta = _negative_binomial(x, theta[0] + numbers[0], theta[1])
    pi = theta[2]
    zero = x == 0.0
    e = exp_minus(tl.abs(pi))
    less = e * rcp(1.0 + e)
    drop = tl.where(pi > 0.0, 1.0 - less, less)
    keep = tl.where(pi > 0.0, less, 1.0 - less)
    soft = log1p_unit(e) + tl.where(pi > 0.0, pi, 0.0)

    fall, _ = one_minus_exp(n)
    joint = -keep * fall
    direct = joint > -0.5
    odds = pi + n
    tail = exp_minus(tl.abs(odds))
    inside = tl.where(direct, joint, tail)
    log_part = log1p_of(inside, 1.0 + inside)
    at_zero = tl.where(direct, -log_part, soft - tl.where(odds > 0.0, pi, -n) - log_part)
    lesser = tail * rcp(1.0 + tail)
    from_outside = tl.where(odds > 0.0, 1.0 - lesser, lesser)
    weight = tl.where(zero, tl.where(odds > 0.0, lesser, 1.0 - lesser), 1.0)
    return (
        tl.where(zero, at_zero, n + soft),
        to_mu * weight,
        to_theta * weight,
        tl.where(zero, joint * from_outside, drop),
    )


@triton.jit
def _negative_binomial(x, mu, theta):
    """The loss and its derivatives:

    x log1p(c) - theta log1p(b) + log1p(x/theta)/2 + S(theta) - S(x + theta) + log(x! / (x/e)^x)
    with b = (x - mu) / (mu + theta) and c = theta (x - mu) / (mu (x + theta)).
    """
    # Nor is there a logarithm of what is nearly 0; that of a negative count makes the loss NaN.
    none = tl.abs(x) < (1e-300 if x.dtype == tl.float64 else 1.2e-38)
    total, mean = x + theta, mu + theta
    by_mu, by_theta, by_total, by_mean = rcp(mu), rcp(theta), rcp(total), rcp(mean)
    d = x - mu
    b = d * by_mean
    near = tl.abs(b) < 0.25
    rise = minus_log1p_near(b)
    log_total = log_coarse(total)
    ratio = total * by_mean
    # Where the quotient nears the end of what float32 holds the logarithms are far apart.
    far = tl.where(ratio < 1e-30, log_total - log_coarse(mean), log_coarse(ratio))
    log_b = tl.where(near, b - rise, far)
    rise = tl.where(near, rise, b - far)
    c = (d * by_mu) * (theta * by_total)
    log_c = log1p_of(c, (x * by_mu) * (mean * by_total))
    deviance = tl.where(none, 0.0, x * log_c) - theta * log_b

    rest_theta, psi_theta = stirling_rest(theta, by_theta)
    rest_total, psi_total = stirling_rest(total, by_total)
    spread = x * by_theta
    binomial = 0.5 * log_coarse(total * by_theta) + (rest_theta - rest_total)
    binomial += factorial_rest(x, rcp(x), log_coarse(x))

    to_mu = theta * by_mean * tl.where(none, 1.0, -d * by_mu)
    step = 0.5 * spread * by_total
    to_theta = tl.where(none, rise, rise - (step + (psi_total - psi_theta)))
    return deviance + tl.where(none, 0.0, binomial), to_mu, to_theta


@triton.jit
def _largest_ratio(x):
    return 1e290 if x.dtype == tl.float64 else 1e30


@triton.jit
def _log1p_ratio(n, d):
    """log(1 + n/d), n, d >= 0, also where n/d overflows: there it is scaled by 2^-64."""
    q = n / d
    large = q > _largest_ratio(n)
    scaled = (n * 2.3283064365386963e-10) / (d * 4294967296.0)
    value = log1p(tl.where(large, scaled, q))
    return tl.where(large, value + 44.3614195558364998, value)
