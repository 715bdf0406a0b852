"""Settings that change no value change no bit either, whichever kernel serves the call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Target
from torch import Tensor

import vaefast as vf

SHAPE = (5, 1027)
NAMES = ("z", "kl", "mu", "logvar")
ONES = torch.ones(SHAPE, dtype=torch.bool)
NEUTRAL: dict[str, dict[str, Any]] = {
    "mask": {"mask": ONES},
    "weight": {"weight": ONES.float()},
}


def called(device: str, dtype: torch.dtype, reduction: str, **settings: Any) -> list[Tensor]:
    """z, the KL and the gradients of mu and of the log-variance."""
    generator = torch.Generator().manual_seed(1)
    mu, logvar = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    # Some whose exponentials are no normal numbers.
    logvar[1, 5:11] = torch.tensor([-200.0, -95.0, -87.0, 87.0, 87.5, -0.0])
    leaves = [t.to(device, dtype).requires_grad_() for t in (mu, logvar)]
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in settings.items()}
    z, kl = vf.sample_kl(*leaves, seed=3, reduction=reduction, **moved)
    upstream = [torch.ones_like(z), torch.ones_like(kl)]
    return [z, kl, *torch.autograd.grad([z, kl], leaves, upstream)]


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sample"])
def test_no_bit_changes(kernels: Target, reduction: str, dtype: torch.dtype) -> None:
    plain = called(kernels.device, dtype, reduction)
    for name, settings in NEUTRAL.items():
        other = called(kernels.device, dtype, reduction, **settings)
        for what, one, two in zip(NAMES, plain, other, strict=True):
            different = (one != two) & ~(one.isnan() & two.isnan())
            assert not different.any(), (name, what, one[different][:5], two[different][:5])
