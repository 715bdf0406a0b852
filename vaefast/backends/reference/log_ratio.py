"""log p(z) - log q(z|x) of given samples as differentiable PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..._args import compute_dtype
from .._options import Transform
from .sample_kl import log_variance

_LOG_2PI = math.log(2 * math.pi)


def log_ratio(
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    transform: Transform,
    prior: bool,
) -> Tensor:
    """`[K, B]` for z `[K, B, *latent]`; -log q(z|x) alone where `prior` is False."""
    dtype = compute_dtype(z, mu, scale, prior_mu, prior_scale)
    wide = z.to(dtype)
    logvar = log_variance(scale.to(dtype), transform)
    elements = (wide - mu.to(dtype)) ** 2 * torch.exp(-logvar) + logvar
    if prior:
        distance = wide if prior_mu is None else wide - prior_mu.to(dtype)
        if prior_scale is None:
            elements = elements - distance**2
        else:
            prior_logvar = log_variance(prior_scale.to(dtype), transform._replace(clamp=()))
            elements = elements - distance**2 * torch.exp(-prior_logvar) - prior_logvar
    else:
        elements = elements + _LOG_2PI
    return 0.5 * (elements.flatten(2).sum(-1) if elements.dim() > 2 else elements)
