"""log q(z|x) - log p(z) of given samples as differentiable PyTorch."""

from __future__ import annotations

import math

from torch import Tensor

from ..._args import compute_dtype
from .._options import Transform
from ._exact import difference_of_squares, whitened
from .sample_kl import log_variance

_LOG_2PI = math.log(2 * math.pi)


def monte_carlo_kl(
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    transform: Transform,
    prior: bool,
) -> Tensor:
    """`[K, B]` for z `[K, B, *latent]`; log q(z|x) alone where `prior` is False."""
    dtype = compute_dtype(z, mu, scale, prior_mu, prior_scale)
    wide = z.to(dtype)
    logvar = log_variance(scale.to(dtype), transform)
    near = whitened(wide - mu.to(dtype), logvar, finite=True)
    if prior:
        far = wide if prior_mu is None else wide - prior_mu.to(dtype)
        if prior_scale is not None:
            prior_logvar = log_variance(prior_scale.to(dtype), transform._replace(clamp=()))
            far = whitened(far, prior_logvar, finite=True)
            logvar = logvar - prior_logvar
        elements = difference_of_squares(far, near) - logvar
    else:
        elements = -(near.square() + logvar + _LOG_2PI)
    return 0.5 * (elements.flatten(2).sum(-1) if elements.dim() > 2 else elements)
