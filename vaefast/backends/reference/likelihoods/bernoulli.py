"""Formulas of values in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._exact import clamp
from ._base import formula

# B_2n / (2n (2n)!), n = 1, 2, ...: log(sinh(l/2) / (l/2)) = sum of them times l^2n. In float64 11
# are exact to the last place for |l| < 1.
_LOG_SINHC = (
    1 / 24,
    -1 / 2880,
    1 / 181440,
    -1 / 9676800,
    1 / 479001600,
    -691 / 15692092416000,
    1 / 1046139494400,
    -3617 / 170729965486080000,
    43867 / 91963695909076992000,
    -174611 / 16218514556728147968000,
    77683 / 316281087590823297024000,
)
# Of a probability, or of what it lacks of 1, for the derivative of its logarithm.
_LEAST = 1e-12


@formula
def bernoulli(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """softplus(l) - x l, in a form that keeps the tails: log1p(e^-|l|) + |l| [(l > 0) - x]_l."""
    (logits,) = params
    up = logits > 0
    # Each branch is the formula itself, differentiable at 0 too; -|l| there is not.
    tail = F.softplus(torch.where(up, -logits, logits), threshold=100)
    return tail + torch.where(up, (1 - x) * logits, -x * logits)


@formula
def bernoulli_probs(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """-x log p - (1 - x) log(1 - p), each logarithm at least -100, as torch's.

    The derivative of a logarithm of less than 1e-12 is 1e12, that at 1e-12.
    """
    (probs,) = params
    fixed = probs.detach()
    change = probs - fixed
    low, high = fixed < _LEAST, 1 - fixed < _LEAST
    # Straight lines through the logarithms' values.
    least_yes = clamp(torch.log(fixed), low=-100.0) + change / _LEAST
    least_no = clamp(torch.log1p(-fixed), low=-100.0) - change / _LEAST
    yes = torch.where(low, least_yes, torch.log(torch.where(low, 1.0, probs)))
    no = torch.where(high, least_no, torch.log1p(-torch.where(high, 0.0, probs)))
    return -(x * yes + (1 - x) * no)


@formula
def continuous_bernoulli(
    x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]
) -> Tensor:
    """log((e^l - 1) / l) - x l: around 0 (1/2 - x) l plus the series of log(sinh(l/2) / (l/2))."""
    (logits,) = params
    near = logits.abs() < 1
    close = torch.where(near, logits, 0.0)
    square = close * close
    series = torch.zeros_like(square)
    for coefficient in reversed(_LOG_SINHC):
        series = (series + coefficient) * square
    inside = (0.5 - x) * close + series
    far = torch.where(near, 1.0, logits)
    size = far.abs()
    outside = torch.where(far > 0, 1 - x, x) * size + torch.log(-torch.expm1(-size) / size)
    return torch.where(near, inside, outside)
