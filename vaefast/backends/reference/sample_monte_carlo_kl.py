"""The posterior's samples and log q(z|x) - log p(z) at each as differentiable PyTorch."""

from __future__ import annotations

from torch import Tensor

from ..._args import compute_dtype
from .._options import Posterior
from ._exact import difference_of_squares, whitened
from .sample_kl import epsilon, log_variance, standard_deviation


def sample_monte_carlo_kl(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    state: Tensor | None,
    noise: Tensor | None,
    options: Posterior,
    stop_posterior: bool = False,
) -> tuple[Tensor, Tensor]:
    """(z, kl): kl is `[K, B]` for z `[K, B, *latent]`, or `[B]` for z `[B, *latent]`.

    (z - mu) / sigma is the noise itself, so the gradient through z and the score's cancel in it;
    `stop_posterior` leaves the first alone.
    """
    dtype = compute_dtype(mu, scale, prior_mu, prior_scale)
    wide_mu, wide_scale = mu.to(dtype), scale.to(dtype)
    std = standard_deviation(wide_scale, options.transform)
    logvar = log_variance(wide_scale, options.transform)
    near = options.temperature * epsilon(mu, state, noise, options, dtype)
    z = wide_mu + std * near
    if stop_posterior:
        logvar = logvar.detach()
        near = near + whitened(z - z.detach(), logvar)
    far = z if prior_mu is None else z - prior_mu.to(dtype)
    if prior_scale is not None:
        prior_logvar = log_variance(prior_scale.to(dtype), options.transform._replace(clamp=()))
        far = whitened(far, prior_logvar, finite=True)
        logvar = logvar - prior_logvar
    elements = difference_of_squares(far, near) - logvar
    lead = z.dim() - mu.dim() + 1
    kl = 0.5 * (elements.flatten(lead).sum(-1) if elements.dim() > lead else elements)
    return z.to(mu.dtype), kl
