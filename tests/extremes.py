"""Values and derivatives of every likelihood in 60 digits, for parameters of any size."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import mpmath as mp
import torch
from torch import Tensor

Number = mp.mpf
# From (x, *theta) to the value and the derivative in each parameter.
Truth = Callable[..., list[Number]]

TINY, HUGE = 1.2e-38, 1e38
REALS = [
    s * v for v in (TINY, 1e-25, 1e-8, 0.3, 1.0, 9.0, 16.0, 30.0, 1e5, 1e18, HUGE) for s in (1, -1)
]
REALS += [0.0, 88.0, -88.0, 104.0, -104.0]
LOG_SCALES = [
    s * v for v in (0.5, 10, 44, 60, 87, 88.8, 98, 150, 174, 300, 1e4, HUGE) for s in (1, -1)
]
LOG_SCALES += [0.0]
POSITIVE = [TINY, 1e-20, 1e-5, 0.3, 1.0, 7.0, 1e5, 1e20, HUGE]
# Targets and locations: at no distance, at a small one, at one of every size.
PLACES = [
    *((0.0, 0.0), (1.0, 1.0), (-1e30, -1e30), (TINY, 0.0), (0.0, 1e-25), (1e-10, 0.0)),
    *((1.0, 0.3), (-3.0, 2.0), (100000.0, 100001.0), (1e30, 0.0), (0.0, -HUGE)),
]
COUNTS = [0.0, 1.0, 3.0, 1000.0]
UNIT = [0.0, 0.25, 1.0]
PROBABILITIES = [0.0, TINY, 1e-20, 1e-13, 1e-11, 0.3, 0.5, 1 - 2.0**-24, 1.0]
LEVELS = [0.0, 1.0, 128.0, 254.0, 255.0]


def points(form: str, count: int) -> list[tuple[float, ...]]:
    """Rows of (x, *theta), without a learned scalar, for a likelihood of this form, which has
    `count` parameters."""
    match form:
        case "bernoulli" | "continuous_bernoulli":
            return list(itertools.product(UNIT, REALS))
        case "bernoulli_probs":
            return list(itertools.product(UNIT, PROBABILITIES))
        case "poisson":
            return list(itertools.product(COUNTS, LOG_SCALES))
        case "poisson_rate":
            return list(itertools.product(COUNTS, POSITIVE))
        case "negative_binomial":
            some = [v for v in POSITIVE if 1e-30 < v < 1e30]
            return list(itertools.product(COUNTS, some, some))
        case "zero_inflated_negative_binomial":
            few = [1e-20, 0.3, 7.0, 1e20]
            logits = [-HUGE, -90.0, -9.0, 0.0, 3.0, 14.0, 90.0, HUGE]
            return list(itertools.product(COUNTS, few, few, logits))
        case "discretized_logistic":
            return list(itertools.product(LEVELS, [-1.0, -0.003, 0.5, 1e5], LOG_SCALES))
        case _ if count == 1:
            return PLACES
        case _:
            return [(*place, s) for place in PLACES for s in LOG_SCALES]


def _tail(a: Number) -> Number:
    """e^-|a|; 0 where its exponent alone would fill the memory."""
    return mp.exp(-abs(a)) if abs(a) < 1e12 else mp.mpf(0)


def _softplus(a: Number) -> Number:
    return max(a, mp.mpf(0)) + mp.log1p(_tail(a))


def _sigmoid(a: Number) -> Number:
    e = _tail(a)
    return 1 / (1 + e) if a > 0 else e / (1 + e)


def _sign(a: Number) -> Number:
    return mp.mpf(mp.sign(a))


def bernoulli(x: Number, logit: Number) -> list[Number]:
    high = (1 - x) * logit if logit > 0 else -x * logit
    return [mp.log1p(mp.exp(-abs(logit))) + high, _sigmoid(logit) - x]


def bernoulli_probs(x: Number, p: Number) -> list[Number]:
    least = mp.mpf(1e-12)
    logs = [max(mp.log(q) if q > 0 else mp.ninf, mp.mpf(-100)) for q in (p, 1 - p)]
    slope = (1 - x) / max(1 - p, least) - x / max(p, least)
    return [-x * logs[0] - (1 - x) * logs[1], slope]


def continuous_bernoulli(x: Number, logit: Number) -> list[Number]:
    if abs(logit) < mp.mpf("1e-15"):
        return [(mp.mpf(1) / 2 - x) * logit + logit**2 / 24, mp.mpf(1) / 2 - x + logit / 12]
    a = abs(logit)
    normaliser = max(logit, mp.mpf(0)) + mp.log(-mp.expm1(-a) / a)
    # e^l / (e^l - 1) - 1/l.
    mean = (1 / -mp.expm1(-a) if logit > 0 else mp.exp(-a) / mp.expm1(-a)) - 1 / logit
    return [normaliser - x * logit, mean - x]


def gaussian(x: Number, mean: Number, logvar: Number) -> list[Number]:
    slope = (mean - x) * mp.exp(-logvar)
    square = (mean - x) * slope
    return [(square + logvar + mp.log(2 * mp.pi)) / 2, slope, (1 - square) / 2]


def gaussian_scalar(x: Number, mean: Number, std: Number) -> list[Number]:
    r = (mean - x) / std
    return [r * r / 2 + mp.log(std) + mp.log(2 * mp.pi) / 2, r / std, (1 - r * r) / std]


def laplace(x: Number, loc: Number, log_scale: Number) -> list[Number]:
    inverse = mp.exp(-log_scale)
    r = (loc - x) * inverse
    return [abs(r) + log_scale + mp.log(2), _sign(r) * inverse, 1 - abs(r)]


def laplace_scalar(x: Number, loc: Number, scale: Number) -> list[Number]:
    r = (loc - x) / scale
    return [abs(r) + mp.log(2 * scale), _sign(r) / scale, (1 - abs(r)) / scale]


def log_cosh(x: Number, loc: Number, log_scale: Number) -> list[Number]:
    inverse = mp.exp(-log_scale)
    r = (loc - x) * inverse
    far = abs(r) > 1000
    value = abs(r) - mp.log(2) if far else mp.log1p(2 * mp.sinh(r / 2) ** 2)
    slope = _sign(r) if far else mp.tanh(r)
    return [value + log_scale + mp.log(mp.pi), slope * inverse, 1 - r * slope]


def student_t(x: Number, loc: Number, log_scale: Number, df: float = 4.0) -> list[Number]:
    v = mp.mpf(df)
    constant = mp.log(v * mp.pi) / 2 + mp.loggamma(v / 2) - mp.loggamma((v + 1) / 2)
    d, inverse = loc - x, mp.exp(-log_scale)
    square = (d * inverse) ** 2 / v
    value = (v + 1) / 2 * mp.log1p(square) + log_scale + constant
    share = square / (1 + square)
    return [value, (v + 1) * d * inverse**2 / v / (1 + square), 1 - (v + 1) * share]


def poisson(x: Number, log_rate: Number) -> list[Number]:
    rate = mp.exp(log_rate)
    return [rate - x * log_rate + mp.loggamma(x + 1), rate - x]


def poisson_rate(x: Number, rate: Number) -> list[Number]:
    return [rate - x * mp.log(rate) + mp.loggamma(x + 1), 1 - x / rate]


def negative_binomial(x: Number, mu: Number, theta: Number) -> list[Number]:
    terms = theta * mp.log(theta / (theta + mu)) + x * mp.log(mu / (theta + mu))
    value = -(terms + mp.loggamma(x + theta) - mp.loggamma(theta) - mp.loggamma(x + 1))
    to_mu = theta * (mu - x) / (mu * (mu + theta))
    # digamma(x + theta) - digamma(theta) for a whole x.
    rise = mp.fsum(1 / (theta + k) for k in range(int(x)))
    to_theta = -(mp.log(theta / (theta + mu)) + (mu - x) / (theta + mu) + rise)
    return [value, to_mu, to_theta]


def zero_inflated(x: Number, mu: Number, theta: Number, pi: Number) -> list[Number]:
    n, to_mu, to_theta = negative_binomial(x, mu, theta)
    if x:
        return [n + _softplus(pi), to_mu, to_theta, _sigmoid(pi)]
    # softplus(pi) - log(e^pi + e^-n)
    higher = max(pi, -n)
    value = _softplus(pi) - higher - mp.log1p(mp.exp(-abs(pi + n)))
    counted = _sigmoid(-(pi + n))
    return [value, counted * to_mu, counted * to_theta, _sigmoid(pi) - _sigmoid(pi + n)]


def discretized_logistic(x: Number, loc: Number, log_scale: Number) -> list[Number]:
    """Of a level x of 8 bits on [-1, 1]: x is the level's number."""
    half, inverse = mp.mpf(1) / 255, mp.exp(-log_scale)
    centre = 2 * x / 255 - 1
    upper, lower = (centre + half - loc) * inverse, (centre - half - loc) * inverse
    if x == 0:
        beyond = _sigmoid(-upper)
        return [_softplus(-upper), inverse * beyond, upper * beyond]
    if x == 255:
        before = _sigmoid(lower)
        return [_softplus(lower), -inverse * before, -lower * before]
    width = upper - lower
    beyond, before = _sigmoid(-upper), _sigmoid(lower)
    left = _tail(width) - 1 if width > 1 else mp.expm1(-width)
    value = _softplus(-upper) + _softplus(lower) - mp.log(-left)
    share = width * _tail(width) / -left
    edge = beyond - before
    return [value, inverse * edge, upper * beyond - lower * before + share]


TRUTHS: dict[str, Truth] = {
    "bernoulli": bernoulli,
    "bernoulli_probs": bernoulli_probs,
    "continuous_bernoulli": continuous_bernoulli,
    "gaussian": gaussian,
    "gaussian_scalar": gaussian_scalar,
    "laplace": laplace,
    "laplace_scalar": laplace_scalar,
    "log_cosh": log_cosh,
    "student_t": student_t,
    "poisson": poisson,
    "poisson_rate": poisson_rate,
    "negative_binomial": negative_binomial,
    "zero_inflated_negative_binomial": zero_inflated,
    "discretized_logistic": discretized_logistic,
}


def kl(mu: Number, logvar: Number, prior_mu: Number, prior_logvar: Number) -> list[Number]:
    """KL(N(mu, e^logvar) || N(prior_mu, e^prior_logvar)), and its four derivatives."""
    gap, d = logvar - prior_logvar, mu - prior_mu
    slope = d * mp.exp(-prior_logvar)
    grown = mp.expm1(gap)
    whole = d * slope + grown
    return [(whole - gap) / 2, slope, grown / 2, -slope, -whole / 2]


def monte_carlo_kl(
    z: Number, mu: Number, logvar: Number, prior_mu: Number, prior_logvar: Number
) -> list[Number]:
    """log N(z; mu, e^logvar) - log N(z; prior_mu, e^prior_logvar), and its five derivatives."""
    near, far = (z - mu) * mp.exp(-logvar), (z - prior_mu) * mp.exp(-prior_logvar)
    squares = [(z - mu) * near, (z - prior_mu) * far]
    value = (squares[1] - squares[0] + prior_logvar - logvar) / 2
    return [value, far - near, near, (squares[0] - 1) / 2, -far, (1 - squares[1]) / 2]


@functools.cache
def table(truth: Truth, rows: tuple[tuple[float, ...], ...]) -> tuple[Tensor, Tensor]:
    """The truth at each row in float64, and what its inputs' rounding does to it.

    An input is known to half an ulp, so that no formula can tell a result better than its
    derivative in the input, times the input, leaves it.
    """
    values, conditions = [], []
    with mp.workdps(150):
        for row in rows:
            at = list(map(mp.mpf, row))
            found = truth(*at)
            spread = [mp.mpf(0)] * len(found)
            for k, argument in enumerate(at):
                if not argument:
                    continue
                step = argument * mp.mpf(2) ** -80
                up, down = list(at), list(at)
                up[k] += step
                down[k] -= step
                try:
                    pairs = zip(truth(*up), truth(*down), strict=True)
                except ValueError:
                    continue
                for j, (a, b) in enumerate(pairs):
                    spread[j] += abs(a - b) * mp.mpf(2) ** 79
            values.append([_float(v) for v in found])
            conditions.append([_float(c) for c in spread])
    return torch.tensor(values, dtype=torch.float64), torch.tensor(conditions, dtype=torch.float64)


def _float(value: Number) -> float:
    value = mp.re(value)
    return float(mp.sign(value)) * float("inf") if abs(value) > mp.mpf(10) ** 300 else float(value)


def check(
    got: Sequence[Tensor],
    truth: Truth,
    rows: list[tuple[float, ...]],
    ulps: float,
    floor: float = 1e-30,
) -> None:
    """Asserts that `got`, the value and its derivatives in float32, each [rows], is the truth.

    Where that overflows it is infinite or near the largest number, never NaN.
    """
    want, condition = table(truth, tuple(rows))
    ours = torch.stack([g.detach().cpu().double() for g in got], 1)
    most, eps = torch.finfo(torch.float32).max, torch.finfo(torch.float32).eps
    allowed = ulps * eps * (want.abs() + condition) + floor
    right = (ours - want).abs() <= allowed
    # What overflows is infinite, or cut off on the way; near the end it may already be.
    large = (ours.abs() > most / 8) & (ours.sign() == want.sign())
    right |= (4 * want.abs() > most) & large
    if bool(right.all()):
        return
    bad = (~right).nonzero().tolist()
    lines = [
        f"{rows[i]}: {'value' if j == 0 else f'derivative {j}'} {ours[i, j].item():.9g}, wanted "
        f"{want[i, j].item():.9g}, allowed {allowed[i, j].item():.3g}"
        for i, j in bad[:12]
    ]
    raise AssertionError(f"{len(bad)} of {right.numel()} are wrong:\n" + "\n".join(lines))
