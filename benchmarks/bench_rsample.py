"""Sampling a diagonal Gaussian posterior."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal

import vaefast as vf

from .case import Inputs, OpCase, Shape, leaf


def textbook(mu: Tensor, logvar: Tensor) -> tuple[Tensor]:
    std = torch.exp(0.5 * logvar)
    return (mu + std * torch.randn_like(std),)


def distributions(mu: Tensor, logvar: Tensor) -> tuple[Tensor]:
    return (Normal(mu, torch.exp(0.5 * logvar), validate_args=False).rsample(),)


def fused(mu: Tensor, logvar: Tensor) -> tuple[Tensor]:
    return (vf.rsample(mu, logvar),)


def inputs(shape: Shape, device: torch.device) -> Inputs:
    mu, logvar, upstream = (torch.randn(shape, device=device) for _ in range(3))
    return Inputs((leaf(mu), leaf(0.5 * logvar)), (), (upstream,))


def cases() -> list[OpCase]:
    formulas = {"eager": textbook, "distributions": distributions}
    return [
        OpCase("rsample", shape, inputs, formulas, fused, noisy=True, rereads=True)
        for shape in ((128, 20), (256, 4, 64, 64))
    ]


def test_rsample(measure: Callable[[], None]) -> None:
    measure()
