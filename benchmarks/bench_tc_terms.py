"""beta-TCVAE's terms from all pairs of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import vaefast as vf

from .case import Inputs, OpCase, Shape, leaf, nbytes

DATASET = 50_000
LOG_2PI = math.log(2 * math.pi)


def log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * ((z - mu) ** 2 * torch.exp(-logvar) + logvar + LOG_2PI)


# What docs/aggregate.md plots against the batch, and the last at which eager is measured: beyond
# it one of its B x B x D tensors takes a gigabyte.
SWEEP, EAGERS = (128, 256, 512, 1024, 2048, 4096, 8192), 1024


def textbook(z: Tensor, mu: Tensor, logvar: Tensor, log_weight: Tensor) -> tuple[Tensor, ...]:
    pairs = log_density(z[:, None], mu, logvar)
    log_qz = torch.logsumexp(pairs.sum(2) + log_weight, 1)
    log_product = torch.logsumexp(pairs + log_weight[..., None], 1).sum(1)
    log_qzx = log_density(z, mu, logvar).sum(1)
    log_pz = (-0.5 * (z**2 + LOG_2PI)).sum(1)
    return log_qzx - log_qz, log_qz - log_product, log_product - log_pz


def fused(z: Tensor, mu: Tensor, logvar: Tensor, log_weight: Tensor) -> tuple[Tensor, ...]:
    return tuple(vf.tc_terms(z, mu, logvar, dataset_size=max(DATASET, len(z))))


def stratified(batch: int, device: torch.device) -> Tensor:
    others, size = batch - 1, max(DATASET, batch)
    weight = torch.full((batch, batch), 1 / others, device=device)
    rows = torch.arange(batch, device=device)
    weight[rows, (rows + 1) % batch] = (size - others) / (size * others)
    weight[rows, rows] = 1 / size
    return weight.log()


def inputs(shape: Shape, device: torch.device) -> Inputs:
    mu, logvar, eps = torch.randn(3, *shape, device=device)
    logvar = 0.5 * logvar - 1
    leaves = tuple(leaf(t) for t in (mu + torch.exp(0.5 * logvar) * eps, mu, logvar))
    upstream = tuple(torch.full(shape[:1], beta / shape[0], device=device) for beta in (1, 6, 1))
    # The alternatives' weights: B x B.
    weights = mu.new_empty(0) if shape[0] > EAGERS else stratified(shape[0], device)
    return Inputs(leaves, (weights,), upstream)


def cases() -> list[OpCase]:
    targets = {
        (1024, 10): {"eager": 30.0, "compiled": 6.0},
        (1024, 64): {"eager": 40.0, "compiled": 6.0},
    }
    return [
        OpCase(
            "tc_terms",
            shape,
            inputs,
            {"eager": textbook},
            fused,
            rereads=True,
            targets=targets.get(shape, {}),
            alone=shape[0] > EAGERS,
            # Statistics and moments of rows and columns: O(B x D), nothing for each pair.
            kept=lambda inputs: 8 * nbytes(inputs.leaves[0]),
        )
        for shape in ((128, 10), (1024, 10), *((batch, 64) for batch in SWEEP))
    ]


def test_tc_terms(measure: Callable[[], None]) -> None:
    measure()
