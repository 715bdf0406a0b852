"""The log density of a mixture of diagonal Gaussians as differentiable PyTorch."""

from __future__ import annotations

import math

from torch import Tensor

from ._exact import log_of, logsumexp, whitened


def mixture_log_prob(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> Tensor:
    """log sum_k w_k N(z; mu_k, e^logvar_k) as `[B]`, for z `[B, D]`, mu and logvar `[K, D]`."""
    pairs = normal_log_prob(z[:, None], mu, logvar).sum(-1)
    if log_weights is None:
        return logsumexp(pairs, 1) - (log_of(mu.shape[0], pairs) if mu.shape[0] else 0.0)
    return logsumexp(pairs + log_weights, 1)


def normal_log_prob(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, e^logvar) per element."""
    return -0.5 * (whitened(z - mu, logvar, finite=True).square() + logvar + math.log(2 * math.pi))
