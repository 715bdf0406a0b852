"""Twins of counts: no difference of two large log Gammas anywhere.

With Stirling's formula taken out the large parts of every count likelihood combine by hand into its
deviance, and what is left is small: right for counts and dispersions of any size (Loader 2000,
"Fast and accurate computation of binomial probabilities", for the Poisson case).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._gamma import stirling_rest
from .._math import exp, expm1, expm1_minus_x, horner, log1p, log1p_unit
from ._base import form, heavy_form


@form
@triton.jit
def poisson(x, theta, numbers):
    """theta: log rate; numbers: 1, or 0 to leave log x! out. x (e^r - 1 - r), r = log(rate / x)."""
    log_rate = theta[0]
    rate = exp(log_rate)
    log_x = tl.log(x)
    rest = _factorial_rest(x, log_x)
    deviance = x * expm1_minus_x(log_rate - log_x) + rest
    bare = rate - x * log_rate
    # Below 1 the ratio rate / x may overflow, and there is nothing that cancels.
    small = bare + (x * (log_x - 1.0) + rest)
    full = tl.where(x >= 1.0, deviance, tl.where(x > 0.0, small, rate))
    value = tl.where(numbers[0] != 0.0, full, tl.where(x == 0.0, rate, bare))
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
    rest = _factorial_rest(x, log_x)
    full = x * tl.where(tl.abs(b) < 0.25, _minus_log1p_near(b), far) + rest
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
    e = exp(-tl.abs(pi))
    less = e / (1.0 + e)
    drop = tl.where(pi > 0.0, 1.0 - less, less)
    keep = tl.where(pi > 0.0, less, 1.0 - less)
    soft = log1p_unit(e) + tl.where(pi > 0.0, pi, 0.0)

    joint = keep * expm1(-n)
    direct = joint > -0.5
    odds = pi + n
    tail = exp(-tl.abs(odds))
    log_part = log1p(tl.where(direct, joint, tail))
    at_zero = tl.where(direct, -log_part, soft - tl.where(odds > 0.0, pi, -n) - log_part)
    lesser = tail / (1.0 + tail)
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
    """The loss and its derivatives. With lo, hi the lesser and greater of x and mu, d = hi - lo:

    +-(x log(1 + d/lo theta/(hi + theta)) - theta log(1 + d/(lo + theta)))   [+: x > mu]
    + log(1 + x/theta)/2 + S(theta) - S(x + theta) + log(x! / (x/e)^x).
    """
    none = x == 0.0
    above = x > mu
    low = tl.where(above, mu, x)
    d = tl.where(above, x, mu) - low
    total = x + theta
    mean = mu + theta
    share = theta / tl.where(above, total, mean)
    first = tl.where(none, 0.0, x * _log1p_ratio(d * share, low))
    ratio = _log1p_ratio(d, tl.where(above, mean, total))
    deviance = first - theta * ratio

    log_x = tl.log(tl.where(none, 1.0, x))
    log_theta = tl.log(theta)
    spread = x / theta
    wide = spread > _largest_ratio(x)
    log_spread = tl.where(wide, log_x - log_theta, log1p(spread))
    rest_theta, psi_theta = stirling_rest(theta, log_theta)
    rest_total, psi_total = stirling_rest(total, log_theta + log_spread)
    binomial = 0.5 * log_spread + (rest_theta - rest_total) + _factorial_rest(x, log_x)

    to_mu = theta / mean * tl.where(none, 1.0, (mu - x) / mu)
    b = (x - mu) / mean
    # b - log1p(b), by the logarithm that is known where nothing cancels.
    rise = tl.where(tl.abs(b) < 0.25, _minus_log1p_near(b), b - tl.where(above, ratio, -ratio))
    step = 0.5 * x / theta / total
    to_theta = tl.where(none, rise, rise - (step + (psi_total - psi_theta)))
    value = tl.where(above, deviance, -deviance) + tl.where(none, 0.0, binomial)
    return tl.where(x < 0.0, float("nan"), value), to_mu, to_theta


@triton.jit
def _factorial_rest(x, log_x):
    """log Gamma(x + 1) - (x log x - x), x >= 0."""
    rest, _ = stirling_rest(x, log_x)
    return tl.where(x > 0.0, 0.5 * log_x + 0.918938533204672742 + rest, 0.0)


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


@triton.jit
def _minus_log1p_near(b):
    """b - log(1 + b) near 0: with s = b/(2 + b), log(1 + b) = 2 atanh(s) and b - 2 s = b s."""
    s = b / (2.0 + b)
    z = s * s
    if b.dtype == tl.float64:
        rest = horner(
            z,
            (
                6.66666666666666630e-01,
                4.00000000000008904e-01,
                2.85714285707954319e-01,
                2.22222223935666097e-01,
                1.81817954423719841e-01,
                1.53862504479401890e-01,
                1.32684856806544266e-01,
                1.30896291606746235e-01,
            ),
        )
    else:
        rest = horner(z, (6.666666655e-01, 4.000012263e-01, 2.855073084e-01, 2.333291280e-01))
    return s * (b - z * rest)
