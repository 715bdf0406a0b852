"""The whole loss as one operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import vaefast as vf

from .case import Inputs, OpCase, Shape, leaf

LATENT = 20


def textbook(mu: Tensor, logvar: Tensor, logits: Tensor, x: Tensor) -> tuple[Tensor]:
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return ((nll + kl) / x.shape[0],)


def fused(mu: Tensor, logvar: Tensor, logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (vf.elbo_loss(logits, x, mu, logvar, likelihood="bernoulli").loss,)


def inputs(shape: Shape, device: torch.device) -> Inputs:
    mu, logvar = (torch.randn(shape[0], LATENT, device=device) for _ in range(2))
    logits, x = torch.randn(shape, device=device), torch.rand(shape, device=device)
    return Inputs((leaf(mu), leaf(0.5 * logvar), leaf(logits)), (x,), (None,))


def cases() -> list[OpCase]:
    return [
        OpCase("elbo_loss", (128, 784), inputs, {"eager": textbook}, fused, variant="bernoulli")
    ]


def test_elbo_loss(measure: Callable[[], None]) -> None:
    measure()
