"""The log density of a mixture prior: points, components, dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import vaefast as vf

from . import keops
from .case import Inputs, OpCase, Shape, leaf, nbytes


def textbook(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor) -> tuple[Tensor]:
    squares = (z[:, None] - mu) ** 2 * torch.exp(-logvar)
    pairs = -0.5 * (squares + logvar + math.log(2 * math.pi)).sum(2)
    return (torch.logsumexp(pairs + log_weights, 1),)


def distributions(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor) -> tuple[Tensor]:
    normal = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    weights = Categorical(logits=log_weights, validate_args=False)
    mixture = MixtureSameFamily(weights, Independent(normal, 1), validate_args=False)
    return (mixture.log_prob(z),)


def fused(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor) -> tuple[Tensor]:
    return (vf.mixture_log_prob(z, mu, logvar, log_weights),)


def inputs(shape: Shape, device: torch.device) -> Inputs:
    points, components, dims = shape
    mu, logvar = torch.randn(2, components, dims, device=device)
    log_weights = torch.log_softmax(torch.randn(components, device=device), 0)
    z = torch.randn(points, dims, device=device)
    leaves = tuple(leaf(t) for t in (z, mu, 0.5 * logvar))
    upstream = (torch.full((points,), 1 / points, device=device),)
    return Inputs(leaves, (log_weights,), upstream)


def cases() -> list[OpCase]:
    return [
        OpCase(
            "mixture_log_prob",
            (256, 500, 40),
            inputs,
            keops.beside(
                {"eager": textbook, "distributions": distributions}, keops.mixture_log_prob
            ),
            fused,
            rereads=True,
            targets={"eager": 30.0, "compiled": 3.0},
            # Normalised weights, and with each component's constant.
            kept=lambda inputs: 2 * nbytes(*inputs.constants),
        )
    ]


def test_mixture_log_prob(measure: Callable[[], None]) -> None:
    measure()
