"""Real values around a location, for Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from .._math import exp_finite, expm1, log1p, whitening_root
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
    slope = d * inverse
    return 0.5 * d * d + tl.log(theta[1]) + numbers[0], slope, inverse - d * slope


@form
@triton.jit
def gaussian(x, theta, numbers):
    """theta: mean, logvar; numbers: constant."""
    root = whitening_root(theta[1])
    # (mean - x) / sigma: e^-v times its square may be 0 times infinity.
    d = (theta[0] - x) * root * root
    square = d * d
    return 0.5 * (square + theta[1]) + numbers[0], d * root * root, 0.5 - 0.5 * square


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
    root = exp_finite(-0.5 * theta[1])
    d = theta[0] - x
    scaled = tl.abs(d) * root * root
    return scaled + theta[1] + numbers[0], _sign(d) * root * root, 1.0 - scaled


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
    root = exp_finite(-0.5 * theta[1])
    d = (theta[0] - x) * root * root
    value, slope = _log_cosh(d)
    return value + theta[1] + numbers[0], slope * root * root, 1.0 - d * slope


@form
@triton.jit
def student_t_fixed(x, theta, numbers):
    """theta: loc; numbers: 1 / (b sqrt(df)), (df + 1) / 2, constant."""
    value, slope = _log1p_square((theta[0] - x) * numbers[0])
    return numbers[1] * value + numbers[2], 2.0 * numbers[1] * slope * numbers[0]


@form
@triton.jit
def student_t(x, theta, numbers):
    """theta: loc, log b; numbers: 1 / sqrt(df), (df + 1) / 2, constant."""
    shrink = exp_finite(-0.5 * theta[1])
    d = theta[0] - x
    r = d * shrink * shrink * numbers[0]
    root: tl.constexpr = 1e150 if r.dtype == tl.float64 else 1e18
    # Far out r may overflow where log(1 + r^2) = 2 (log |d| - s - log(df)/2) does not.
    far = tl.abs(r) > root
    square = tl.where(far, 0.0, r * r)
    size = tl.log(tl.where(far, tl.abs(d), 1.0))
    value = tl.where(far, 2.0 * ((size - theta[1]) + tl.log(numbers[0])), log1p(square))
    slope = tl.where(far, 1.0, r) / tl.where(far, d, square + 1.0)
    share = tl.where(far, 1.0, r * slope)
    by = tl.where(far, 1.0, shrink)
    slope = slope * by * by * tl.where(far, 1.0, numbers[0])
    twice = 2.0 * numbers[1]
    return numbers[1] * value + theta[1] + numbers[2], twice * slope, 1.0 - twice * share


@triton.jit
def _sign(x):
    # NaN and 0 stay.
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))


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
    """log(1 + r^2) and r / (1 + r^2), also where r^2 overflows."""
    a = tl.abs(r)
    root: tl.constexpr = 1e150 if r.dtype == tl.float64 else 1e18
    far = a > root
    square = tl.where(far, a, r * r)
    slope = tl.where(far, 1.0 / r, r / (square + 1.0))
    value = log1p(square)
    return tl.where(far, 2.0 * value, value), slope
