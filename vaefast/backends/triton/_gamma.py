"""What is left of log Gamma and digamma without Stirling's formula, inside kernels.

The polynomials are those of csrc/math/gamma.h: [1, 3) is one around 2, with the zeros as factors so
that the error stays relative; from 3 on the tails of Stirling's series.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._math import horner


@triton.jit
def stirling_rest(z, w, log_z):
    """S(z) = log Gamma(z + 1) - (z log z - z + log(2 pi z)/2) and P(z) = digamma(z) - log z + 1/2z.

    For z > 0 whose inverse w and logarithm are known. What does not hold at z is selected away.
    """
    big, small, below, square, t = _places(z, w)
    gamma_mid, psi_mid, gamma_tail, psi_tail = _series(t, square)
    # log Gamma(z + 1) is z (z - 1) G(z - 1) below 1, and (z - 1) (z - 2) G(z - 2) + log z above.
    low = below * (t * gamma_mid - log_z) + (-0.5 * log_z + (z - 0.918938533204672742))
    # digamma's zero is 2 minus this, in two parts.
    if z.dtype == tl.float64:
        from_zero = (t + 5.38367855031637769e-01) - 9.54999542996569772e-17
    else:
        from_zero = t + 5.383678675e-01
    psi = (from_zero * psi_mid + tl.where(small, -0.5 * w, 0.5 * w)) - log_z
    return tl.where(big, w * gamma_tail, low), tl.where(big, -square * psi_tail, psi)


@triton.jit
def factorial_rest(x, w, log_x):
    """log Gamma(x + 1) - (x log x - x) for x >= 0 whose inverse is known, and a finite logarithm
    (of 0 any)."""
    big, _, below, square, t = _places(x, w)
    gamma_mid, _, gamma_tail, _ = _series(t, square)
    low = below * (t * gamma_mid - log_x) + x
    return tl.where(big, w * gamma_tail + (0.5 * log_x + 0.918938533204672742), low)


@triton.jit
def _places(z, w):
    """Whether z is 3 at least, or below 1; z below 1, else z - 1; w^2; z as seen from 1 or 2."""
    small = z < 1.0
    below = tl.where(small, z, z - 1.0)
    return z >= 3.0, small, below, w * w, below - 1.0


@triton.jit
def _series(t, z):
    """Of log Gamma(2 + t) / (t (1 + t)), digamma(2 + t) / (2 + t - its zero), and both tails."""
    if t.dtype == tl.float64:
        gamma_mid = horner(
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
        psi_mid = horner(
            t,
            (
                7.85307538604106181e-01,
                -2.60738954683005675e-01,
                1.08999917017309975e-01,
                -4.95510329171168981e-02,
                2.34473096153683981e-02,
                -1.13384325743992442e-02,
                5.55225378763362677e-03,
                -2.73957251651381611e-03,
                1.35814650089717244e-03,
                -6.75316922712647632e-04,
                3.36403746753538438e-04,
                -1.67793963548529360e-04,
                8.39006695067914164e-05,
                -4.19290442204736620e-05,
                2.05532611509067108e-05,
                -1.02234079677516088e-05,
                5.90399016046791669e-06,
                -3.02267223268438139e-06,
                4.21296843068827598e-07,
                -1.40652432007758253e-07,
                1.08002429070956040e-06,
                -5.83955424001201218e-07,
                -3.11305617457357751e-07,
                1.71631582510394106e-07,
                1.24040779030237631e-07,
                -6.45762301100763081e-08,
            ),
        )
        gamma_tail = horner(
            z,
            (
                8.33333333333225457e-02,
                -2.77777777168751938e-03,
                7.93649767868661129e-04,
                -5.95158478442449432e-04,
                8.38329574213404760e-04,
                -1.82771971041200635e-03,
                4.87545174786653893e-03,
                -1.13885115851765067e-02,
                1.46329840416871866e-02,
            ),
        )
        psi_tail = horner(
            z,
            (
                8.33333333328195869e-02,
                -8.33333313744124421e-03,
                3.96822799847043259e-03,
                -4.16495146032510102e-03,
                7.50996043889597120e-03,
                -1.94963005849038487e-02,
                5.73085061069461832e-02,
                -1.38543075970774088e-01,
                1.77919970540289185e-01,
            ),
        )
    else:
        gamma_mid = horner(
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
        psi_mid = horner(
            t,
            (
                7.853075266e-01,
                -2.607386112e-01,
                1.089999005e-01,
                -4.956041649e-02,
                2.345184051e-02,
                -1.126576681e-02,
                5.513603333e-03,
                -2.976751653e-03,
                1.484399429e-03,
                -3.113736166e-04,
                1.458659972e-04,
                -4.139443336e-04,
                2.100916463e-04,
            ),
        )
        gamma_tail = horner(z, (8.333326876e-02, -2.772793639e-03, 6.971281255e-04))
        psi_tail = horner(z, (8.333262056e-02, -8.292097598e-03, 3.267690772e-03))
    return gamma_mid, psi_mid, gamma_tail, psi_tail
