"""The terms of beta-TCVAE's decomposition of the KL as differentiable PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._options import Weighing
from ._exact import left_open, log_of, logsumexp
from .mixture_log_prob import normal_log_prob


def tc_terms(z: Tensor, mu: Tensor, logvar: Tensor, weighing: Weighing) -> Tensor:
    """mi, tc and dim_kl as `[3, B]`, for z `[B, D]` and mu, logvar `[M, D]`."""
    first = weighing.first
    pairs = normal_log_prob(z[:, None], mu, logvar)
    weights = log_weight_matrix(z, mu.shape[0], weighing)
    log_qz = logsumexp(weights + pairs.sum(-1), 1)
    log_product = logsumexp(weights[..., None] + pairs, 1).sum(-1)
    own = slice(first, first + z.shape[0])
    log_qzx = normal_log_prob(z, mu[own], logvar[own]).sum(-1)
    log_pz = (-0.5 * (z**2 + math.log(2 * math.pi))).sum(-1)
    return torch.stack([log_qzx - log_qz, log_qz - log_product, log_product - log_pz])


def log_weight_matrix(like: Tensor, components: int, weighing: Weighing) -> Tensor:
    """log W `[B, M]`: the logarithm of each posterior's weight in each point's estimate."""
    weight = left_open(weighing.log_weight, like)
    matrix: Tensor = like.new_zeros((like.shape[0], components)) + weight
    if weighing.own == 1 and weighing.stratum == 1:
        return matrix
    own = torch.arange(like.shape[0], device=like.device) + weighing.first
    # The order matters only where a component is its own successor.
    successor = ((own + 1) % components).unsqueeze(1)
    component = torch.arange(components, device=like.device)
    of_stratum = weight + log_of(weighing.stratum, like)
    matrix = torch.where(component == successor, of_stratum, matrix)
    of_own = weight + log_of(weighing.own, like)
    return torch.where(component == own.unsqueeze(1), of_own, matrix)
