"""Formulas of pixels of a few levels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._exact import clamp, decayed
from ._base import formula


@formula
def discretized_logistic(
    x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]
) -> Tensor:
    """The mass of the bin of level a x + b; numbers: (a, b, level 0, bin, last level, log bin)."""
    loc, log_scale = params
    slope, shift, low, bin_width, top, log_bin = numbers
    # 0 x: an infinite pixel is no level, and gives NaN.
    level = clamp(torch.round(x * slope + shift), 0.0, top) + 0.0 * x
    return bin_nll(low + level * bin_width - loc, log_scale, level, top, bin_width, log_bin)


def bin_nll(
    d: Tensor, log_scale: Tensor, level: Tensor, top: float, bin_width: float, log_bin: float
) -> Tensor:
    """-log(sigmoid(u) - sigmoid(l)) = softplus(-u) + softplus(l) - log(1 - e^(l - u)).

    u, l are the standardised edges of the bin around `d` = its centre - loc. The first and the
    last bin reach to infinity and lack the terms of that side.
    """
    upper = decayed(d + 0.5 * bin_width, log_scale, finite=True)
    lower = decayed(d - 0.5 * bin_width, log_scale, finite=True)
    width = decayed(torch.full_like(d, bin_width), log_scale, finite=True)
    over = -F.logsigmoid(upper)
    under = -F.logsigmoid(-lower)
    narrow = width < 1e-20
    wide = width > 0.7
    by_expm1 = torch.log(-torch.expm1(-torch.where(narrow | wide, 1.0, width)))
    by_log1p = torch.log1p(-torch.exp(-torch.where(wide, width, 1.0)))
    mass = torch.where(narrow, log_bin - log_scale, torch.where(wide, by_log1p, by_expm1))
    first, last = level <= 0, level >= top
    return (
        torch.where(last, 0.0, over)
        + torch.where(first, 0.0, under)
        - torch.where(first | last, 0.0, mass)
    )
