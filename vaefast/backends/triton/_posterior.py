"""What a posterior's scale parameter means: to a kernel's call, and inside of it."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .._options import Transform
from ._grid import load
from ._math import exp, sigmoid, softplus, tanh_and_slope


def numbers(transform: Transform) -> tuple[float, ...]:
    """What a kernel takes of the scale parameter: `min_std` and the clamp's bounds."""
    low, high = transform.clamp[:2] if transform.clamp else (0.0, 0.0)
    return (transform.min_std, low, high)


def settings(transform: Transform) -> dict[str, Any]:
    """What a kernel is compiled for of the scale parameter."""
    clamp = transform.clamp
    return {"PARAM": transform.param, "CLAMP": len(clamp) - 1 if clamp else 0}


@triton.jit
def posterior_scale(scale, low, high, min_std, PARAM: tl.constexpr, CLAMP: tl.constexpr):
    """log sigma^2, sigma, and their derivatives in the parameter; CLAMP: 0 none, 1 hard, 2 tanh."""
    if CLAMP == 1:
        # As torch.clamp: NaN stays, and the derivative on the bounds themselves is 1.
        clamp_grad = tl.where((scale < low) | (scale > high), 0.0, 1.0).to(scale.dtype)
        s = tl.where(scale < low, low, scale)
        s = tl.where(s > high, high, s)
    elif CLAMP == 2:
        # Away from the middle by the distance to the nearer bound, which may be 0.
        middle = 0.5 * (high + low)
        half = 0.5 * (high - low)
        u = (scale - middle) / half
        t, rest, clamp_grad = tanh_and_slope(u)
        beside = tl.where(u < 0.0, low + half * rest, high - half * rest)
        s = tl.where(tl.abs(u) < 0.5, middle + half * t, beside)
    else:
        s = scale
        clamp_grad = 1.0
    if PARAM == "logvar":
        std = exp(0.5 * s)
        return s, std, clamp_grad, 0.5 * std * clamp_grad
    elif PARAM == "log_std":
        std = exp(s)
        return 2.0 * s, std, 2.0 * clamp_grad, std * clamp_grad
    elif PARAM == "std":
        return 2.0 * tl.log(s), s, 2.0 * clamp_grad / s, clamp_grad
    elif PARAM == "var":
        std = tl.sqrt(s)
        return tl.log(s), std, clamp_grad / s, 0.5 * clamp_grad / std
    else:
        std = softplus(s) + min_std
        slope = sigmoid(s) * clamp_grad
        return 2.0 * tl.log(std), std, 2.0 * slope / std, slope


@triton.jit
def densities(
    mu, scale, prior_mu, prior_scale, row, columns, live, live_row, min_std, low, high,
    PRIOR: tl.constexpr, PARAM: tl.constexpr, CLAMP: tl.constexpr, GROUP: tl.constexpr,
    VEC: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Mean, log variance, standard deviation and the first's derivative in the parameter, of the
    posterior, and the same without the third of the prior."""
    min_std = tl.full((), min_std, DTYPE)
    low = tl.full((), low, DTYPE)
    high = tl.full((), high, DTYPE)
    m = load(mu, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
    s = load(scale, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
    logvar, std, slope, _ = posterior_scale(s, low, high, min_std, PARAM, CLAMP)
    p = tl.zeros((ROWS, COLS), DTYPE)
    prior_logvar = tl.zeros((ROWS, COLS), DTYPE)
    prior_slope = 1.0
    if PRIOR:
        if prior_mu is not None:
            p += load(prior_mu, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        if prior_scale is not None:
            s = load(prior_scale, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
            found, _, prior_slope, _ = posterior_scale(s, low, high, min_std, PARAM, 0)
            prior_logvar += found
    return m, logvar, std, slope, p, prior_logvar, prior_slope
