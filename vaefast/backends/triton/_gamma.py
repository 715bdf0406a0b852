"""What is left of log Gamma and digamma without Stirling's formula, inside kernels.

From 3 on these are the tails of Stirling's series. A factorial below 3, which may be next to 1, has
the polynomial of csrc/math/gamma.h around 2, with the zeros as factors. Of the tails the
differences count, so that in float64 they are fitted to 1e-17, absolute.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._math import horner


@triton.jit
def tails_apart(a, b, apart):
    """S(u) - S(v) and Q(u) - Q(v) for u, v >= 3 by their inverses a and b, and apart = a - b.

    S(z) = log Gamma(z + 1) - (z log z - z + log(2 pi z)/2) and Q(z) = log z - 1/2z - digamma(z) are
    the tails of Stirling's series. `apart` is a factor of both differences: nothing cancels.
    """
    x, y = a * a, b * b
    gamma, gamma_slope = _gamma_tail(x, y)
    psi, psi_slope = _psi_tail(x, y)
    both = a + b
    return apart * (gamma + b * both * gamma_slope), apart * both * (psi + y * psi_slope)


@triton.jit
def factorial_rest(x, w, log_x):
    """log Gamma(x + 1) - (x log x - x) for x >= 0 whose inverse is known, and a finite logarithm
    (of 0 any)."""
    # log Gamma(x + 1) is x (x - 1) G(x - 1) below 1, and (x - 1) (x - 2) G(x - 2) + log x above.
    big = x >= 3.0
    below = tl.where(x < 1.0, x, x - 1.0)
    square = w * w
    t = below - 1.0
    mid = _gamma_mid(t)
    tail, _ = _gamma_tail(square, square)
    low = below * (t * mid - log_x) + x
    return tl.where(big, w * tail + (0.5 * log_x + 0.918938533204672742), low)


@triton.jit
def _gamma_mid(t):
    """log Gamma(2 + t) / (t (1 + t)), -1 <= t < 1."""
    if t.dtype == tl.float64:
        return horner(
            t,
            (
                4.22784335098467190e-01,
                -1.00317301674349713e-01,
                3.29650006211407581e-02,
                -1.23841921938045961e-02,
                4.99864116551299031e-03,
                -2.10813082077024793e-03,
                9.15376904686241474e-04,
                -4.05707583130629230e-04,
                1.82552836035095072e-04,
                -8.30936677840876827e-05,
                3.81675768058843218e-05,
                -1.76687294923182783e-05,
                8.22778336444679254e-06,
                -3.82518051082792394e-06,
                1.79222401646880950e-06,
                -8.99256357421252024e-07,
                4.34287107191753960e-07,
                -1.27035225837436509e-07,
                5.14166418070623537e-08,
                -1.02288824377682390e-07,
                5.48973011865743708e-08,
                2.25949176644607475e-08,
                -1.31245211612550864e-08,
                -1.14754475129081805e-08,
                5.90419460398891997e-09,
            ),
        )
    else:
        return horner(
            t,
            (
                4.227843285e-01,
                -1.003172770e-01,
                3.296557814e-02,
                -1.238490455e-02,
                4.991841037e-03,
                -2.102442551e-03,
                9.436302353e-04,
                -4.247115285e-04,
                1.313205285e-04,
                -5.327644976e-05,
                7.791878306e-05,
                -3.842234946e-05,
            ),
        )


@triton.jit
def _gamma_tail(x, y):
    """z S(z), of x = 1/z^2 <= 1/9; its slope to y."""
    if x.dtype == tl.float64:
        return _divided(
            x,
            y,
            (
                8.33333333333331344e-02,
                -2.77777777760738294e-03,
                7.93650751179687483e-04,
                -5.95233158391167286e-04,
                8.41427186480803732e-04,
                -1.90424135578263804e-03,
                6.04522768191371063e-03,
                -2.24803742568472249e-02,
                7.74908236324769878e-02,
                -1.91880921817415284e-01,
                2.35957962503850732e-01,
            ),
        )
    else:
        return _divided(x, y, (8.333326876e-02, -2.772793639e-03, 6.971281255e-04))


@triton.jit
def _psi_tail(x, y):
    """z^2 Q(z), of x = 1/z^2 <= 1/9; its slope to y."""
    if x.dtype == tl.float64:
        return _divided(
            x,
            y,
            (
                8.33333333333204918e-02,
                -8.33333332622562470e-03,
                3.96825259386162765e-03,
                -4.16653258081682229e-03,
                7.56801678440715327e-03,
                -2.08035013580818509e-02,
                7.59009192980659025e-02,
                -3.05164572578943250e-01,
                1.08221657957841688e00,
                -2.67784067615031107e00,
                3.24524347311522909e00,
            ),
        )
    else:
        return _divided(x, y, (8.333262056e-02, -8.292097598e-03, 3.267690772e-03))


@triton.jit
def _divided(x, y, c):
    """P(x) and (P(x) - P(y)) / (x - y) for P = c[0] + c[1] x + c[2] x^2 + ..."""
    value = x * c[len(c) - 1] + c[len(c) - 2]
    slope = y * c[len(c) - 1] + value
    value = value * x + c[len(c) - 3]
    for i in tl.static_range(4, len(c) + 1):
        slope = slope * y + value
        value = value * x + c[len(c) - i]
    return value, slope
