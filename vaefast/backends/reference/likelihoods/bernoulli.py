"""Formulas of values in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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


@formula
def bernoulli(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """softplus(l) - x l, in a form that keeps the tails: log1p(e^-|l|) + |l| [(l > 0) - x]_l."""
    (logits,) = params
    tail = F.softplus(-logits.abs(), threshold=100)
    return tail + torch.where(logits > 0, (1 - x) * logits, -x * logits)


@formula
def bernoulli_probs(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """-x log p - (1 - x) log(1 - p), each logarithm at least -100, as torch's."""
    (probs,) = params
    bad = torch.isnan(probs)
    inside = torch.where(bad, 0.5, probs).clamp(0.0, 1.0)
    # Linear in x, so taken at 0 and 1: torch's function refuses a target that is NaN.
    yes = F.binary_cross_entropy(inside, torch.ones_like(inside), reduction="none")
    no = F.binary_cross_entropy(inside, torch.zeros_like(inside), reduction="none")
    return torch.where(bad, probs, x * yes + (1 - x) * no)


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
