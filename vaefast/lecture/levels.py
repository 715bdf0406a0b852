"""Likelihoods of the digits' 17 levels: what is compared in bits gives mass to the same data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import vaefast as vf

TOP = 16


@dataclass(frozen=True, eq=False)
class Levels(vf.likelihoods.DiscretizedLogistic):
    """The discretised logistic of 17 levels in [0, 1], which are not a power of two."""

    low: float = 0.0
    high: float = 1.0

    @property
    def _top(self) -> float:
        return float(TOP)


def gaussian_log_mass(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log of the mass that N(mean, std^2) gives to the bin of each level x, k/16, in float64.

    log(Phi(b) - Phi(a)), a and b the bin's edges (x -+ 1/32 - mean) / std; the first and the last
    bin reach to minus and plus infinity. So a density becomes a likelihood of the same data as
    every other: its masses add up to 1.
    """
    x, mean, std = x.double(), mean.double(), std.double()
    half = 0.5 / TOP
    low = torch.where(x < half, -math.inf, (x - half - mean) / std)
    high = torch.where(x > 1 - half, math.inf, (x + half - mean) / std)
    # Where both edges are above the mean, their mirror images: Phi is near 1 there.
    flipped = low > 0
    low, high = torch.where(flipped, -high, low), torch.where(flipped, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    log_mass: Tensor = upper + torch.log(-torch.expm1(lower - upper))
    return log_mass
