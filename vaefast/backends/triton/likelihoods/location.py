"""Twins of real values around a location."""

from __future__ import annotations

import triton
import triton.language as tl

from .._math import exp, expm1, log1p
from ._base import form


@form
@triton.jit
def gaussian_fixed(x, theta, numbers):
    """theta: mean; numbers: 1 / (2 std^2), constant."""
    d = theta[0] - x
    scaled = d * numbers[0]
    return d * scaled + numbers[1], 2.0 * scaled


@form
@triton.jit
def gaussian_scalar(x, theta, numbers):
    """theta: mean, std; numbers: constant."""
    inverse = 1.0 / theta[1]
    d = (theta[0] - x) * inverse
    square = d * d
    return 0.5 * square + tl.log(theta[1]) + numbers[0], d * inverse, (1.0 - square) * inverse


@form
@triton.jit
def gaussian(x, theta, numbers):
    """theta: mean, logvar; numbers: constant."""
    d = theta[0] - x
    scaled = d * exp(-theta[1])
    square = d * scaled
    return 0.5 * (square + theta[1]) + numbers[0], scaled, 0.5 - 0.5 * square


@form
@triton.jit
def laplace_fixed(x, theta, numbers):
    """theta: loc; numbers: 1 / b, constant."""
    d = theta[0] - x
    return tl.abs(d) * numbers[0] + numbers[1], _sign(d) * numbers[0]


@form
@triton.jit
def laplace_scalar(x, theta, numbers):
    """theta: loc, b; numbers: constant."""
    inverse = 1.0 / theta[1]
    d = theta[0] - x
    scaled = tl.abs(d) * inverse
    return scaled + tl.log(theta[1]) + numbers[0], _sign(d) * inverse, (1.0 - scaled) * inverse


@form
@triton.jit
def laplace(x, theta, numbers):
    """theta: loc, log b; numbers: constant."""
    inverse = exp(-theta[1])
    d = theta[0] - x
    scaled = tl.abs(d) * inverse
    return scaled + theta[1] + numbers[0], _sign(d) * inverse, 1.0 - scaled


@form
@triton.jit
def log_cosh_fixed(x, theta, numbers):
    """theta: loc; numbers: 1 / b, constant."""
    value, slope = _log_cosh((theta[0] - x) * numbers[0])
    return value + numbers[1], slope * numbers[0]


@form
@triton.jit
def log_cosh(x, theta, numbers):
    """theta: loc, log b; numbers: constant."""
    inverse = _inverse_scale(theta[1])
    d = (theta[0] - x) * inverse
    value, slope = _log_cosh(d)
    return value + theta[1] + numbers[0], slope * inverse, 1.0 - d * slope


@form
@triton.jit
def student_t_fixed(x, theta, numbers):
    """theta: loc; numbers: 1 / (b sqrt(df)), (df + 1) / 2, constant."""
    value, pull, _ = _log1p_square((theta[0] - x) * numbers[0])
    return numbers[1] * value + numbers[2], 2.0 * numbers[1] * pull * numbers[0]


@form
@triton.jit
def student_t(x, theta, numbers):
    """theta: loc, log b; numbers: 1 / sqrt(df), (df + 1) / 2, constant."""
    inverse = _inverse_scale(theta[1]) * numbers[0]
    value, pull, share = _log1p_square((theta[0] - x) * inverse)
    twice = 2.0 * numbers[1]
    return numbers[1] * value + theta[1] + numbers[2], twice * pull * inverse, 1.0 - twice * share


@triton.jit
def _sign(x):
    # NaN and 0 stay.
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))


@triton.jit
def _inverse_scale(log_scale):
    """e^-s, finite: an exact 0 times it stays 0."""
    e = exp(-log_scale)
    largest: tl.constexpr = 1.7976931348623157e308 if e.dtype == tl.float64 else 3.4028234e38
    return tl.where(e > largest, largest, e)


@triton.jit
def _log_cosh(d):
    """log cosh(d) and tanh(d) from t = e^|d| - 1, by which nothing cancels for small d."""
    a = tl.abs(d)
    # From here on e^-2a is below half an ulp of 1.
    edge: tl.constexpr = 30.0 if d.dtype == tl.float64 else 15.0
    far = a > edge
    t = expm1(tl.where(far, edge, a))
    square = t * (t + 2.0)
    size = square / (square + 2.0)
    near = log1p(t * t / (2.0 + 2.0 * t))
    return tl.where(far, a - 0.693147180559945309, near), tl.where(d < 0.0, -size, size)


@triton.jit
def _log1p_square(r):
    """log(1 + r^2), r / (1 + r^2) and r^2 / (1 + r^2), also where r^2 overflows."""
    a = tl.abs(r)
    root: tl.constexpr = 1e150 if r.dtype == tl.float64 else 1e18
    far = a > root
    square = tl.where(far, a, r * r)
    pull = tl.where(far, 1.0 / r, r / (square + 1.0))
    value = log1p(square)
    return tl.where(far, 2.0 * value, value), pull, tl.where(far, 1.0, r * pull)
