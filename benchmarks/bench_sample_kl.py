"""Sampling a diagonal Gaussian posterior and its KL to N(0, I), in one call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import vaefast as vf

from .case import Inputs, OpCase, Shape, leaf


def textbook(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    std = torch.exp(0.5 * logvar)
    z = mu + std * torch.randn_like(std)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / mu.shape[0]
    return z, kl


def distributions(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    # Without its argument checks, which wait for a GPU.
    posterior = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    prior = Normal(mu.new_zeros(()), mu.new_ones(()), validate_args=False)
    return posterior.rsample(), kl_divergence(posterior, prior).sum() / mu.shape[0]


def fused(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    return vf.sample_kl(mu, logvar, reduction="batchmean")


def inputs(shape: Shape, device: torch.device) -> Inputs:
    mu, logvar, upstream = (torch.randn(shape, device=device) for _ in range(3))
    return Inputs((leaf(mu), leaf(0.5 * logvar)), (), (upstream, None))


def cases() -> list[OpCase]:
    sizes: dict[Shape, dict[str, float]] = {
        (128, 20): {"eager": 2.5},
        (1024, 128): {"eager": 4, "compiled": 12},
        (256, 4, 64, 64): {"eager": 6, "compiled": 15, "copy_": 2},
    }
    formulas = {"eager": textbook, "distributions": distributions}
    return [
        OpCase(
            "sample_kl", shape, inputs, formulas, fused, noisy=True, rereads=True, targets=targets
        )
        for shape, targets in sizes.items()
    ]


def test_sample_kl(measure: Callable[[], None]) -> None:
    measure()
