"""Counts, for Triton: no difference of two large log Gammas anywhere.

With Stirling's formula taken out the large parts of every count likelihood combine by hand into its
deviance, and what is left is small: right for counts and dispersions of any size (Loader 2000,
"Fast and accurate computation of binomial probabilities", for the Poisson case).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._gamma import factorial_rest, tails_apart
from .._hardware import log2, rcp
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
    rise, near = minus_log1p_near(b)
    full = x * tl.where(near, rise, far) + rest
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
    """The loss and its derivatives, with m = mu + theta and the tails S and Q of Stirling's series
    where these hold, at u and v: theta and x + theta, for theta < 3 three further on.

    x log1p(c) - theta log1p(b) + log(v/u)/2 + log G + S(u) - S(v) + log(x! / (x/e)^x)
    with c = x m / (mu v) - 1, b = theta v / (u m) - 1 and G what Gamma's recurrence leaves below 3,
    g(x + theta) / g(theta), g(z) = z (z + 1) (z + 2) / (z + 3)^3; else 1. All but the first two
    has x as a factor, and is as small.
    """
    # Nor is there a logarithm of what is nearly 0; that of a negative count makes the loss NaN.
    none = tl.abs(x) < (1e-300 if x.dtype == tl.float64 else 1.2e-38)
    LN2: tl.constexpr = 0.693147180559945309
    low = theta < 3.0
    shift = tl.where(low, 3.0, 0.0)
    total, mean = x + theta, mu + theta
    u, v = theta + shift, total + shift
    by_mu, by_mean, by_u, by_v = rcp(mu), rcp(mean), rcp(u), rcp(v)
    d = x - mu
    share = tl.where(low, theta * by_u, 1.0)
    further = shift * by_u
    # (theta d - shift mu) / u, of which b and c are made.
    e = share * d - further * mu
    b = e * by_mean
    c = (e * by_mu) * (u * by_v)

    ratio = share * (v * by_mean)
    # Where the quotient nears the end of what float32 holds the logarithms are far apart,
    far = tl.where(ratio < 1e-30, log2(share * v) - log2(mean), log2(ratio)) * LN2
    rise, near = minus_log1p_near(b)
    log_b = tl.where(near, b - rise, far)
    rise = tl.where(near, rise, b - far)
    # and of a tiny mean the other is 2^64 times smaller.
    rare = mu < 1e-18
    ratio = (x * tl.where(rare, by_mu * 5.421010862427522e-20, by_mu)) * (mean * by_v)
    # Of so small a count its logarithm does not matter, but for being one.
    ratio = tl.maximum(ratio, 1e-37, propagate_nan=tl.PropagateNan.ALL)
    far = log2(ratio) * LN2 + tl.where(rare, 44.3614195558364998, 0.0)
    slow, near = minus_log1p_near(c)
    deviance = tl.where(none, 0.0, x * tl.where(near, c - slow, far)) - theta * log_b

    # All that follows has x as a factor.
    scaled = x * by_v
    apart = scaled * by_u
    gamma, psi = tails_apart(by_u, by_v, apart)
    # With w = 1/(z + 3), g is (1 - w) (1 - 2 w) (1 - 3 w).
    both = by_u + by_v
    growth = (both * both - by_u * by_v) * 6.0 + (both * -11.0 + 6.0)
    first, second = theta + 1.0, theta + 2.0
    pair = first * second
    by_all = rcp(theta * pair)
    # G - 1, and digamma's recurrence.
    grown = tl.where(low, (scaled * growth) * (u * u * by_all), 0.0)
    whole = 1.0 + grown
    steps = rcp(first * (total + 1.0)) + rcp(second * (total + 2.0))
    steps = tl.where(low, (x * rcp(total)) * (by_all * pair) + x * steps, 0.0)

    # log G + log(v/u) / 2 = log(1 + y) / 2.
    y = grown * (1.0 + whole) + (x * by_u) * (whole * whole)
    far = (log2(whole) + 0.5 * log2(v * by_u)) * LN2
    slow, _ = minus_log1p_near(y)
    edge: tl.constexpr = 0.43 if x.dtype == tl.float64 else 0.62
    binomial = tl.where(y < edge, 0.5 * (y - slow), far) + gamma
    binomial += factorial_rest(x, rcp(x), log_coarse(x))

    to_mu = theta * by_mean * tl.where(none, 1.0, -d * by_mu)
    to_theta = rise + (further * (x * by_mean) - (0.5 * apart + (steps + psi)))
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
