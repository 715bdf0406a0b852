"""The KL of a diagonal Gaussian posterior to N(0, I)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import vaefast as vf

from .case import Inputs, OpCase, Shape, leaf


def textbook(mu: Tensor, logvar: Tensor) -> tuple[Tensor]:
    return (-0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / mu.shape[0],)


def distributions(mu: Tensor, logvar: Tensor) -> tuple[Tensor]:
    posterior = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    prior = Normal(mu.new_zeros(()), mu.new_ones(()), validate_args=False)
    return (kl_divergence(posterior, prior).sum() / mu.shape[0],)


def fused(mu: Tensor, logvar: Tensor) -> tuple[Tensor]:
    return (vf.gaussian_kl(mu, logvar, reduction="batchmean"),)


def inputs(shape: Shape, device: torch.device) -> Inputs:
    mu, logvar = (torch.randn(shape, device=device) for _ in range(2))
    return Inputs((leaf(mu), leaf(0.5 * logvar)), (), (None,))


def cases() -> list[OpCase]:
    formulas = {"eager": textbook, "distributions": distributions}
    return [
        OpCase("gaussian_kl", shape, inputs, formulas, fused, rereads=True)
        for shape in ((128, 20), (256, 4, 64, 64))
    ]


def test_gaussian_kl(measure: Callable[[], None]) -> None:
    measure()
