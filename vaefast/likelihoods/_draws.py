"""Gamma and Poisson variates from counter-based noise, with a fixed number of attempts.

A rejection sampler that loops until all have accepted would wait for the device. The number of
attempts leaves each element a chance below 1e-15 to keep the fallback, its mode.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import random
from ._base import Noise

_GAMMA_ATTEMPTS = 12
_POISSON_ATTEMPTS = 24
# Below it the Poisson is inverted by summing its mass, which ends after this many terms.
_SMALL_RATE, _SMALL_TERMS = 10.0, 60


def gamma(shape: Tensor, noise: Noise, first: int) -> Tensor:
    """Gamma(shape, 1) in float64, from the draws `first` on (Marsaglia & Tsang 2000)."""
    boosted = torch.where(shape < 1, shape + 1, shape)
    d = boosted - 1 / 3
    c = 1 / torch.sqrt(9 * d)
    found = torch.ones_like(d)
    pending = torch.ones_like(d, dtype=torch.bool)
    for attempt in range(_GAMMA_ATTEMPTS):
        n = noise("normal", first + 2 * attempt, torch.float64)
        u = noise("uniform", first + 2 * attempt + 1, torch.float64)
        v = (1 + c * n) ** 3
        positive = v > 0
        log_v = torch.log(torch.where(positive, v, 1.0))
        accepted = positive & (torch.log(u) < 0.5 * n * n + d * (1 - v + log_v))
        found = torch.where(pending & accepted, v, found)
        pending = pending & ~accepted
        if _finished(pending):
            break
    u = noise("uniform", first + 2 * _GAMMA_ATTEMPTS, torch.float64)
    power = torch.where(shape < 1, torch.exp(torch.log(u) / shape), 1.0)
    return d * found * power


def poisson(rate: Tensor, noise: Noise) -> Tensor:
    """Poisson(rate) in float64, from the draws below 60."""
    small = rate < _SMALL_RATE
    return torch.where(
        small,
        _inverted(torch.where(small, rate, 1.0), noise("uniform", 0, torch.float64)),
        _transformed_rejection(torch.where(small, _SMALL_RATE, rate), noise),
    )


def _inverted(rate: Tensor, u: Tensor) -> Tensor:
    mass = torch.exp(-rate)
    below = mass.clone()
    count = torch.zeros_like(rate)
    for k in range(1, _SMALL_TERMS):
        count = count + (u > below)
        mass = mass * (rate / k)
        below = below + mass
    return count


def _transformed_rejection(rate: Tensor, noise: Noise) -> Tensor:
    """PTRS (Hörmann 1993, "The transformed rejection method for generating Poisson variables")."""
    log_rate = torch.log(rate)
    b = 0.931 + 2.53 * torch.sqrt(rate)
    a = -0.059 + 0.02483 * b
    log_inverse_alpha = torch.log(1.1239 + 1.1328 / (b - 3.4))
    v_r = 0.9277 - 3.6224 / (b - 2)
    found = torch.floor(rate)
    pending = torch.ones_like(rate, dtype=torch.bool)
    for attempt in range(_POISSON_ATTEMPTS):
        u = noise("uniform", 1 + 2 * attempt, torch.float64) - 0.5
        v = noise("uniform", 2 + 2 * attempt, torch.float64)
        # u in (-1/2, 1/2]: half a step keeps us positive.
        us = (0.5 - u.abs()).clamp(min=2.0**-33)
        k = torch.floor((2 * a / us + b) * u + rate + 0.43)
        inside = (k >= 0) & ((us >= 0.013) | (v <= us))
        height = torch.log(v) + log_inverse_alpha - torch.log(a / (us * us) + b)
        mass = k * log_rate - rate - torch.lgamma(k.clamp(min=0.0) + 1)
        accepted = ((us >= 0.07) & (v <= v_r)) | (inside & (height <= mass))
        found = torch.where(pending & accepted, k, found)
        pending = pending & ~accepted
        if _finished(pending):
            break
    return found


def _finished(pending: Tensor) -> bool:
    """True where asking can be and costs no wait for a device, and every element has accepted."""
    if pending.device.type != "cpu" or torch.compiler.is_compiling() or random.transformed():
        return False
    return not bool(pending.any())
