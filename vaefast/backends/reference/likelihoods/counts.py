"""Formulas of counts, by Stirling's formula with its large parts combined by hand.

log Gamma(z + 1) = z log z - z + log(2 pi z)/2 + S(z): what is left of a count likelihood is its
deviance and S, which is small. Computed in float64 where the device has it: differences of order
1/theta^2 are formed from terms of order 1/theta in the derivative.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._base import formula

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# From here on the terms below give S to the last place.
_LARGE = 10.0
# B_2n / (2n (2n - 1)).
_STIRLING = (
    1 / 12,
    -1 / 360,
    1 / 1260,
    -1 / 1680,
    1 / 1188,
    -691 / 360360,
    1 / 156,
    -3617 / 122400,
)


@formula
def poisson(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """x (e^r - 1 - r) + log(x! / (x/e)^x), r = l - log x; numbers: (0 to leave out log x!,)."""
    (log_rate,), x = _wide(params, x)
    if not numbers[0]:
        return _checked(_bare_poisson(x, log_rate), x, params)
    positive = x >= 1
    safe = torch.where(positive, x, 1.0)
    # Each branch has a rate of its own: one that overflows would come back as NaN in the gradient.
    r = torch.where(positive, log_rate, 0.0) - torch.log(safe)
    near = r.abs() < 0.5
    close = torch.where(near, r, 0.0)
    series = torch.zeros_like(close)
    for k in range(18, 1, -1):
        series = series * close + 1 / math.factorial(k)
    far = torch.where(near, 1.0, r)
    excess = torch.where(near, series * close * close, torch.expm1(far) - far)
    large = safe * excess + _factorial_rest(safe)
    bare = _bare_poisson(x, torch.where(positive, 0.0, log_rate))
    small = bare + torch.lgamma(torch.where(positive, 1.0, x) + 1)
    return _checked(torch.where(positive, large, small), x, params)


def _bare_poisson(x: Tensor, log_rate: Tensor) -> Tensor:
    """e^l - x l, and e^l for x = 0 and any l."""
    none = x == 0
    return torch.exp(log_rate) - torch.where(none, 0.0, x * torch.where(none, 0.0, log_rate))


@formula
def poisson_rate(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """rate - x log rate + log x!; numbers: (0 to leave out log x!,)."""
    (rate,), x = _wide(params, x)
    none = x == 0
    inside = torch.where(none, 1.0, rate)
    if not numbers[0]:
        return _checked(rate - torch.where(none, 0.0, x * torch.log(inside)), x, params)
    safe = torch.where(none, 1.0, x)
    above = safe > inside
    low, high = torch.where(above, inside, safe), torch.where(above, safe, inside)
    gone = _overflows(high - low, low)
    ratio = safe * torch.log1p((high - low) / torch.where(gone, 1.0, low))
    ratio = torch.where(gone, safe * _log_ratio(high, low, gone), ratio)
    deviance = (inside - safe) + torch.where(above, ratio, -ratio)
    value = torch.where(none, rate, deviance + _factorial_rest(safe))
    return _checked(value, x, params)


@formula
def negative_binomial(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """-log NB(x; mu + eps, theta): see `_negative_binomial`; numbers: (eps,)."""
    (mu, theta), x = _wide(params, x)
    return _checked(_negative_binomial(x, mu + numbers[0], theta), x, params)


@formula
def zero_inflated_negative_binomial(
    x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]
) -> Tensor:
    """n + softplus(pi) for x > 0; -log1p(sigmoid(-pi) (e^-n - 1)) for x = 0, n = -log NB(x).

    numbers: (eps,), which is added to mu.
    """
    (mu, theta, pi), x = _wide(params, x)
    n = _negative_binomial(x, mu + numbers[0], theta)
    # expm1's derivative in torch is its result + 1, which is 0 where e^-n is small.
    fall = torch.where(n < 1, torch.expm1(-n), torch.exp(-n) - 1)
    soft = -F.logsigmoid(-pi)
    # sigmoid(-pi), whose own derivative in torch is lost where it is near 1.
    joint = torch.exp(-soft) * fall
    direct = joint > -0.5
    near = -torch.log1p(torch.where(direct, joint, 0.0))
    far = soft - torch.logaddexp(pi, -n)
    return _checked(torch.where(x == 0, torch.where(direct, near, far), n + soft), x, params)


def _negative_binomial(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """The deviance, with lo, hi the lesser and the greater of x and mu and d = hi - lo,
        +-(x log(1 + d/lo theta/(hi + theta)) - theta log(1 + d/(lo + theta)))   [+: x > mu],
    and log(1 + x/theta)/2 + S(theta) - S(x + theta) + log(x! / (x/e)^x).
    """
    x, mu, theta = torch.broadcast_tensors(x, mu, theta)
    none, above = x == 0, x > mu
    low, high = torch.where(above, mu, x), torch.where(above, x, mu)
    d = high - low
    share = _share(theta, high)
    gone = ~none & _overflows(d, low)
    odds = d / torch.where(none | gone, 1.0, low) * share
    first = torch.where(none, 0.0, x * torch.log1p(torch.where(none, 0.0, odds)))
    first = torch.where(gone, x * _log_ratio(low + d * share, low, gone), first)
    deviance = first - _theta_log1p(theta, d, low)
    safe = torch.where(none, 1.0, x)
    rest = _stirling_rest(theta) - _stirling_rest(safe + theta)
    binomial = 0.5 * torch.log1p(safe / theta) + rest + _factorial_rest(safe)
    return torch.where(above, deviance, -deviance) + torch.where(none, 0.0, binomial)


def _overflows(d: Tensor, low: Tensor) -> Tensor:
    """True where log1p(d / low) has no derivative in numbers: at low = 0, and near it."""
    return low * torch.finfo(low.dtype).max < d


def _log_ratio(high: Tensor, low: Tensor, where: Tensor) -> Tensor:
    """log(high / low), 0 elsewhere; at low = 0 infinite, with a derivative of -inf, not NaN."""
    one = torch.ones_like(low)
    return torch.log(torch.where(where, high, one)) - torch.log(torch.where(where, low, one))


def _share(theta: Tensor, other: Tensor) -> Tensor:
    """theta / (theta + other), in a form whose derivative does not cancel for large theta."""
    whole = theta + other
    return torch.where(theta < other, theta / whole, 1 - other / whole)


def _theta_log1p(theta: Tensor, d: Tensor, low: Tensor) -> Tensor:
    """theta log(1 + q), q = d / (theta + low); for small q as theta q - theta (q - log(1 + q)).

    theta q = d theta / (theta + low), and q - log(1 + q) is a series: what is left of the
    derivative for large theta is of second order, and nothing of first order is subtracted.
    """
    q = d / (theta + low)
    near = q < 0.05
    close = torch.where(near, q, 0.0)
    series = torch.zeros_like(close)
    for k in range(16, 1, -1):
        series = series * -close + 1 / k
    inside = d * _share(theta, low) - theta * (series * close * close)
    return torch.where(near, inside, theta * torch.log1p(torch.where(near, 0.0, q)))


def _factorial_rest(x: Tensor) -> Tensor:
    """log Gamma(x + 1) - (x log x - x), x > 0."""
    return 0.5 * torch.log(x) + _HALF_LOG_2PI + _stirling_rest(x)


def _stirling_rest(z: Tensor) -> Tensor:
    """S(z), z > 0."""
    large = z >= _LARGE
    w = 1 / torch.where(large, z, _LARGE)
    square = w * w
    series = torch.zeros_like(w)
    for coefficient in reversed(_STIRLING):
        series = series * square + coefficient
    safe = torch.where(large, 1.0, z)
    direct = torch.lgamma(safe + 1) - (safe + 0.5) * torch.log(safe) + safe - _HALF_LOG_2PI
    return torch.where(large, series * w, direct)


def _wide(params: tuple[Tensor, ...], x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    if x.device.type == "mps":
        return params, x
    return tuple(p.double() for p in params), x.double()


def _checked(value: Tensor, x: Tensor, params: tuple[Tensor, ...]) -> Tensor:
    """`value` in the compute dtype; NaN for a negative count."""
    return torch.where(x < 0, math.nan, value).to(params[0].dtype)
