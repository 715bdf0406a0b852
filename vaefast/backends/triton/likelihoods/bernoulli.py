"""Values in [0, 1], for Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from .._hardware import rcp
from .._math import exp_minus, expm1, horner, log1p, log1p_unit
from ._base import form


@form
@triton.jit
def bernoulli(x, theta, numbers):
    """theta: logits. softplus(l) - x l, split by the sign of l so that neither tail cancels."""
    logits = theta[0]
    up = logits > 0.0
    e = exp_minus(tl.abs(logits))
    tail = e * rcp(1.0 + e)
    other = 1.0 - x
    nll = log1p_unit(e) + tl.where(up, other * logits, -x * logits)
    return nll, tl.where(up, other - tail, tail - x)


@form
@triton.jit
def bernoulli_probs(x, theta, numbers):
    """theta: probabilities; logarithms of at least -100, and for the derivative p and 1 - p at
    least 1e-12: (1 - x) / (1 - p) - x / p over one denominator."""
    p = theta[0]
    yes = tl.log(p)
    no = log1p(-p)
    q = 1.0 - p
    wide_p = tl.where(p < 1e-12, 1e-12, p)
    wide_q = tl.where(q < 1e-12, 1e-12, q)
    grad = ((p - x) + ((wide_p - p) - (wide_q - q))) / (wide_p * wide_q)
    nll = x * tl.where(yes < -100.0, -100.0, yes) + (1.0 - x) * tl.where(no < -100.0, -100.0, no)
    return -nll, grad


@form
@triton.jit
def continuous_bernoulli(x, theta, numbers):
    """theta: logits l. log((e^l - 1) / l) - x l, near 0 by the series of log(sinh(l/2) / (l/2))."""
    logits = theta[0]
    up = logits > 0.0
    a = tl.abs(logits)
    near = a < 2.0
    z = tl.where(near, logits * logits, 0.0)
    y = tl.where(up, 1.0 - x, x)
    # Away from 0; the select keeps a division by 0 out of the branch that is not taken.
    far = tl.where(near, 2.0, a)
    fall = -expm1(-far)
    inverse = 1.0 / far
    log_sinhc, coth_rest = _sinh_series(z)
    slope = y + ((1.0 - fall) / fall - inverse)
    grad = tl.where(near, logits * coth_rest + (0.5 - x), tl.where(up, slope, -slope))
    inside = logits * (logits * log_sinhc + (0.5 - x))
    return tl.where(near, inside, y * a + tl.log(fall * inverse)), grad


@triton.jit
def _sinh_series(z):
    """log(sinh(l/2) / (l/2)) / l^2 and (coth(l/2)/2 - 1/l) / l for z = l^2 <= 4."""
    if z.dtype == tl.float64:
        value = horner(
            z,
            (
                4.16666666666666644e-02,
                -3.47222222222221802e-04,
                5.51146384479288574e-06,
                -1.03339947073145719e-07,
                2.08767566499250533e-09,
                -4.40348780647980208e-11,
                9.55866197902615776e-13,
                -2.11715829227495165e-14,
                4.72707918511873287e-16,
                -1.00344687531926120e-17,
                1.52952172095271999e-19,
            ),
        )
        slope = horner(
            z,
            (
                8.33333333333333287e-02,
                -1.38888888888887897e-03,
                3.30687830686841443e-05,
                -8.26719576332252940e-07,
                2.08767562084209540e-08,
                -5.28418096216318751e-10,
                1.33818602616930940e-11,
                -3.38645915529986605e-13,
                8.48640760835869937e-15,
                -1.97919369286838517e-16,
                3.21932869194723267e-18,
            ),
        )
    else:
        value = horner(
            z,
            (4.166666660e-02, -3.472213281e-04, 5.509659380e-06, -1.020513412e-07, 1.702779137e-09),
        )
        slope = horner(
            z,
            (8.333333251e-02, -1.388878519e-03, 3.304782282e-05, -8.117004180e-07, 1.635687190e-08),
        )
    return value, slope
