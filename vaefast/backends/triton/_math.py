"""Elementary functions inside kernels, for float32 and float64.

`tl.exp` in float32 loses an ulp per unit of |x|, `tl.sin` and `tl.cos` bring a slow path with table
loads, and expm1, log1p and tanh are not there at all. The polynomials are those of
csrc/math/special.h. Nothing here rests on a fused multiply-add.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._hardware import exp2, log2, rcp


@triton.jit
def horner(x, c):
    """c[0] + c[1] x + c[2] x^2 + ..."""
    total = x * c[len(c) - 1] + c[len(c) - 2]
    for i in tl.static_range(3, len(c) + 1):
        total = total * x + c[len(c) - i]
    return total


@triton.jit
def exp(x):
    """e^x; 0 below 1.2e-38 in float32."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return exp_below(tl.minimum(x, 89.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def exp_below(x):
    """e^x for x <= 89, which stands for all above, as -104 for all below; in float64 for any."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return _exp_bounded(tl.maximum(x, -104.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def exp_minus(a):
    """e^-a for a >= 0."""
    if a.dtype == tl.float64:
        return tl.exp(-a)
    else:
        return _exp_bounded(-tl.minimum(a, 104.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def exp_close(x):
    """e^x within an ulp, where errors of a sum of many are multiplied: a polynomial; 0 below
    1.7e-38 in float32."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        # The bounds stand for all beyond: n is -126, where the factor is 0, and 128.
        c = tl.maximum(x, -87.3, propagate_nan=tl.PropagateNan.ALL)
        c = tl.minimum(c, 89.0, propagate_nan=tl.PropagateNan.ALL)
        # Adding 1.5 * 2^23 + 126 rounds to an integer and leaves n + 126, the exponent of 2^(n-1).
        t = c * 1.44269504 + 12583038.0
        n = t - 12583038.0
        half = (t.to(tl.uint32, bitcast=True) << 23).to(tl.float32, bitcast=True)
        # The upper part of ln 2 has so few bits that n times it is exact.
        r = (c - n * 0.693359375) + n * 2.12194440e-4
        tail = horner(
            r, (4.999999404e-01, 1.666652113e-01, 4.166822508e-02, 8.368674666e-03, 1.382424962e-03)
        )
        return 2.0 * (half * (r * r * tail + r) + half)


@triton.jit
def exp_finite(x):
    """e^x, finite: the root e^(-s/2) of e^-s is applied twice where that alone may overflow."""
    if x.dtype == tl.float64:
        return tl.exp(tl.minimum(x, 709.3, propagate_nan=tl.PropagateNan.ALL))
    else:
        return exp_below(tl.minimum(x, 88.3, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _exp_bounded(c):
    """e^c in float32, -104 <= c <= 89: what the product with log2 e rounds away, less than 1e-5,
    comes back as a factor, which leaves an infinite result alone."""
    t = c * 1.44269504
    low = tl.fma(c, 1.92596303e-8, tl.fma(c, 1.44269502, -t))
    return exp2(t) * tl.fma(low, 0.693147182, 1.0)


@triton.jit
def finite(x):
    """x cut off at the largest number; NaN stays."""
    largest: tl.constexpr = 1.7976931348623157e308 if x.dtype == tl.float64 else 3.4028234e38
    x = tl.maximum(x, -largest, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, largest, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def whitening_root(logvar):
    """sqrt(1 / sigma): x / sigma is (x root) root, and that again divided so x / sigma^2."""
    return exp_finite(-0.25 * logvar)


@triton.jit
def whitened(x, root):
    """x / sigma, cut off at the largest number: of two of them the difference is never NaN."""
    return finite(x * root * root)


@triton.jit
def half_difference_of_squares(a, b):
    """(a^2 - b^2) / 2 for finite a and b, also where both squares overflow."""
    return (a - b) * (0.5 * a + 0.5 * b)


@triton.jit
def expm1(x):
    """e^x - 1."""
    if x.dtype == tl.float64:
        c = tl.maximum(x, -50.0, propagate_nan=tl.PropagateNan.ALL)
        c = tl.minimum(c, 710.0, propagate_nan=tl.PropagateNan.ALL)
        t = c * 1.44269504088896341 + 6755399441056766.0
        n = t - 6755399441056766.0
        s = (t.to(tl.uint64, bitcast=True) << 52).to(tl.float64, bitcast=True)
        a = c - n * 6.93147180369123816e-01
        b = n * -1.90821492927058770e-10
        r = a + b
        tail = horner(
            r,
            (
                5.00000000000001110e-01,
                1.66666666666664243e-01,
                4.16666666665268318e-02,
                8.33333333348553265e-03,
                1.38888889443814813e-03,
                1.98412695266465491e-04,
                2.48014924121183826e-05,
                2.75575682648999567e-06,
                2.76304681454878126e-07,
                2.50058181270854756e-08,
            ),
        )
    else:
        c = tl.maximum(x, -25.0, propagate_nan=tl.PropagateNan.ALL)
        c = tl.minimum(c, 89.0, propagate_nan=tl.PropagateNan.ALL)
        t = c * 1.44269504 + 12583038.0
        n = t - 12583038.0
        s = (t.to(tl.uint32, bitcast=True) << 23).to(tl.float32, bitcast=True)
        a = c - n * 0.693359375
        b = n * 2.12194440e-4
        r = a + b
        tail = horner(
            r, (4.999999404e-01, 1.666652113e-01, 4.166822508e-02, 8.368674666e-03, 1.382424962e-03)
        )
    low = r * r * tail + b
    y = 2.0 * (low * s + (a * s + (s - 0.5)))
    return tl.where(tl.abs(x) < 1e-20, x, y)


@triton.jit
def expm1_minus_x(x, e):
    """e^x - 1 - x with e = e^x known, by a polynomial for small x, where the difference cancels."""
    if x.dtype == tl.float64:
        inner = horner(
            x,
            (
                5.00000000000000000e-01,
                1.66666666666666657e-01,
                4.16666666666662758e-02,
                8.33333333333368710e-03,
                1.38888888889650915e-03,
                1.98412698409715501e-04,
                2.48015872520424200e-05,
                2.75573193206771302e-06,
                2.75573340307591933e-07,
                2.50520952276950248e-08,
                2.08745217371953903e-09,
                1.60595294525556806e-10,
                1.16364629717603511e-11,
                7.68804916370415673e-13,
            ),
        )
        above = tl.minimum(x, 710.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        # e may be a square, with twice the error of an exponential; at 2.5 a third is added to it.
        inner = horner(
            x,
            (
                5.000000022e-01,
                1.666666798e-01,
                4.166664916e-02,
                8.333286730e-03,
                1.388910118e-03,
                1.984574549e-04,
                2.479346122e-05,
                2.738588340e-06,
                2.764669099e-07,
                2.786433611e-08,
                2.150179020e-09,
            ),
        )
        above = tl.minimum(x, 89.0, propagate_nan=tl.PropagateNan.ALL)
    # For x = inf the bound is subtracted: inf - inf would be NaN.
    near: tl.constexpr = 1.0 if x.dtype == tl.float64 else 2.5
    return tl.where(tl.abs(x) < near, x * x * inner, (e - 1.0) - above)


@triton.jit
def one_minus_exp(w):
    """1 - e^-w and e^-w for w >= 0, not NaN; e^-w as well as w is known, which was rounded."""
    if w.dtype == tl.float64:
        return -expm1(-w), exp(-w)
    else:
        e = exp2(w * -1.44269504)
        rise = w * horner(
            w,
            (
                9.999999846e-01,
                -4.999979129e-01,
                1.666207195e-01,
                -4.130873214e-02,
                7.175151620e-03,
            ),
        )
        return tl.where(w < 0.35, rise, 1.0 - e), e


@triton.jit
def log1p_unit(t):
    """log(1 + t) for 0 <= t <= 1."""
    if t.dtype == tl.float64:
        s = t / (2.0 + t)
        z = s * s
        q = horner(
            z,
            (
                6.66666666666663077e-01,
                4.00000000001566880e-01,
                2.85714285478857577e-01,
                2.22222239686048872e-01,
                1.81817439526079427e-01,
                1.53865594490023849e-01,
                1.33009790330827077e-01,
                1.21060466745314774e-01,
                8.34026479392584730e-02,
                1.70182849993352564e-01,
            ),
        )
        h = 0.5 * t * t
        return t - (h - s * (h + z * q))
    else:
        q = horner(
            t - 0.5,
            (
                -3.781395555e-01,
                1.792248785e-01,
                -9.323204309e-02,
                5.108945444e-02,
                -2.890299447e-02,
                1.665294543e-02,
                -1.018407568e-02,
                6.942085456e-03,
                -3.316225950e-03,
            ),
        )
        return t * t * q + t


@triton.jit
def log1p(x):
    """log(1 + x): Kahan's correction of what 1 + x rounds away."""
    u = 1.0 + x
    d = u - 1.0
    corrected = tl.log(u) * (x / tl.where(d == 0.0, 1.0, d))
    return tl.where(d == 0.0, x, tl.where(u < float("inf"), corrected, u))


@triton.jit
def log_normal(x):
    """log x of a normal, positive, finite x: a third fewer instructions than `tl.log`."""
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        bits = x.to(tl.int32, bitcast=True)
        # What to take from the bits to divide by 2^k, 2^k nearest to x.
        field = (bits - 0x3F400000) & -0x800000
        f = (bits - field).to(tl.float32, bitcast=True) - 1.0
        k = field.to(tl.float32) * 1.1920929e-7
        q = horner(
            f,
            (
                -5.000000000e-01,
                3.333345354e-01,
                -2.500012517e-01,
                1.999073178e-01,
                -1.664614528e-01,
                1.447778344e-01,
                -1.317136288e-01,
                1.048773304e-01,
                -4.524556920e-02,
            ),
        )
        return k * 6.93145752e-01 + (k * 1.42860677e-06 + (f * f * q + f))


@triton.jit
def log_coarse(x):
    """log x in two instructions: between 1/2 and 2 to 2e-7, elsewhere to 2 ulp; x >= 2^-126."""
    return tl.log(x) if x.dtype == tl.float64 else log2(x) * 0.693147182


@triton.jit
def log1p_of(y, whole):
    """log(1 + y) with 1 + y known, by the logarithm that cancels nothing."""
    rise, _ = minus_log1p_near(y)
    return tl.where(tl.abs(y) < 0.25, y - rise, log_coarse(whole))


@triton.jit
def minus_log1p_near(b):
    """b - log(1 + b) near 0, and whether b is: with s = b/(2 + b), log(1 + b) = 2 atanh(s) and
    b - 2 s = b s. For |s| < 0.237 the series is right to 5e-8, in float64 for |s| < 0.177 to 1e-17.
    """
    s = b * rcp(2.0 + b)
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
    # Of b, as the inverse of the largest is 0, and so is s. From both ends s is as far.
    middle: tl.constexpr = 0.065 if b.dtype == tl.float64 else 0.12
    reach: tl.constexpr = 0.365 if b.dtype == tl.float64 else 0.5
    return s * (b - z * rest), tl.abs(b - middle) < reach


@triton.jit
def softplus(x):
    """log(1 + e^x)."""
    return tl.where(x > 0.0, x, 0.0) + log1p_unit(exp_minus(tl.abs(x)))


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), accurate in both tails."""
    e = exp_minus(tl.abs(x))
    q = e * rcp(1.0 + e)
    return tl.where(x < 0.0, e - e * q, 1.0 - q)


@triton.jit
def tanh_and_slope(x):
    """tanh x, 1 - |tanh x| and 1 - tanh(x)^2, the latter two as right as the first in their own
    size: as differences they would keep no digit. Where they end to be normal numbers the second
    stays what it is and the third is 0."""
    MOST: tl.constexpr = 350.0 if x.dtype == tl.float64 else 43.5
    a = tl.abs(x)
    h = 0.5 * expm1(2.0 * tl.minimum(a, MOST, propagate_nan=tl.PropagateNan.ALL))
    rest = 1.0 / (1.0 + h)
    slope = tl.where(a > MOST, 0.0, rest * (2.0 - rest))
    q = h * rest
    # A small q keeps the rounding error of 1 + h; h - h q does not.
    t = tl.where(h < 0.25, h - h * q, q)
    return tl.where(x < 0.0, -t, t), rest, slope


@triton.jit
def sincos_turns(u):
    """sin and cos of 2 pi u, 0 <= u <= 1, by quarter turns, of which the remainder is exact."""
    if u.dtype == tl.float64:
        t = 4.0 * u + 6755399441055744.0
        f = 4.0 * u - (t - 6755399441055744.0)
        turn = t.to(tl.int64, bitcast=True)
        z = f * f
        low = horner(
            z,
            (
                5.62935908208845836e-17,
                -6.45964097506244284e-01,
                7.96926262460415369e-02,
                -4.68175413231760370e-03,
                1.60441150572790989e-04,
                -3.59864278131260325e-06,
                5.63386079141380104e-08,
            ),
        )
        sin = f * 1.57079632679489656 + f * low
        rest = horner(
            z,
            (
                -1.23370055013616975e00,
                2.53669507901042646e-01,
                -2.08634807632191027e-02,
                9.19260273189712366e-04,
                -2.52020312287434989e-05,
                4.71045526170559291e-07,
                -6.30423256249365102e-09,
            ),
        )
    else:
        t = 4.0 * u + 12582912.0
        f = 4.0 * u - (t - 12582912.0)
        turn = t.to(tl.int32, bitcast=True)
        z = f * f
        low = horner(z, (-4.854137714e-08, -6.459634900e-01, 7.968036085e-02, -4.602535628e-03))
        sin = f * 1.57079637 + f * low
        rest = horner(z, (-1.233700514e00, 2.536686361e-01, -2.085649595e-02, 8.966450114e-04))
    cos = z * rest + 1.0
    odd = (turn & 1) != 0
    s = tl.where(odd, cos, sin).to(turn.dtype, bitcast=True)
    c = tl.where(odd, sin, cos).to(turn.dtype, bitcast=True)
    # The sign of a quadrant is its second bit, moved to the top.
    top: tl.constexpr = turn.dtype.primitive_bitwidth - 2
    s = s ^ ((turn & 2) << top)
    c = c ^ (((turn + 1) & 2) << top)
    return s.to(u.dtype, bitcast=True), c.to(u.dtype, bitcast=True)
