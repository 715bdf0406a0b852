"""A posterior's sample and its KL divergence in one read of mu and scale."""

from __future__ import annotations

from torch import Tensor

from .. import _args, random
from .._args import Clamp, Param, Reduction
from ..backends._options import Posterior
from . import _sample_kl, _small
from .gaussian_kl import check_prior, kernel_reduction
from .rsample import noise_state, transform_of


def sample_kl(
    mu: Tensor,
    scale: Tensor,
    *,
    prior_mu: Tensor | None = None,
    prior_scale: Tensor | None = None,
    reduction: Reduction = "sample",
    num_samples: int | None = None,
    temperature: float = 1.0,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    seed: random.Seed | None = None,
    generator: random.Generator | None = None,
    noise: Tensor | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """(z, KL): `rsample` and `gaussian_kl` of one posterior, in one read of mu and scale.

    Args:
        mu: `[B, *latent]`, float64, float32, bfloat16 or float16.
        scale: as mu; what it is, `param` says.
        prior_mu, prior_scale: the prior, as in `gaussian_kl`.
        reduction: of the KL: `"sample"` (`[B]`, what `elbo_loss(kl=...)` takes) or any other of
            `gaussian_kl`.
        num_samples, temperature, seed, generator, noise, offset: of z, as in `rsample`.
        param, min_std, clamp: of scale, as in `rsample`.
        mask, weight: on the KL's elements, as in `gaussian_kl`.

    Returns:
        z with mu's dtype, and the KL in nats, float32 (float64 if any parameter is).

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, logvar = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> z, kl = vf.sample_kl(mu, logvar, seed=0)
        >>> z.shape, kl.shape, float(kl.sum())
        (torch.Size([8, 2]), torch.Size([8]), 0.0)

    Source: Kingma & Welling 2014, section 2.4 and appendix B.
    """
    standard = (
        prior_mu is None
        and prior_scale is None
        and mask is None
        and weight is None
        and noise is None
        and num_samples is None
    )
    settings = (param, min_std, clamp, temperature, offset, reduction)
    if standard:
        found = _small.sample_kl(mu, scale, settings, seed, generator)
        if found is not None:
            return found
    check_prior(mu, scale, prior_mu, prior_scale)
    mask, weight = _args.mask_and_weight(mask, weight, mu.shape, mu)
    _args.one_of("reduction", reduction, (*_args.REDUCTIONS, "dim"))
    transform = transform_of(param, min_std, clamp)
    state = noise_state(mu, num_samples, seed, generator, noise)
    how, factor = kernel_reduction(reduction, mu.shape)
    samples = 0 if num_samples is None else num_samples
    options = Posterior(transform, samples, float(temperature), offset, how, factor)
    z, kl = _sample_kl.run(
        mu,
        scale,
        options,
        prior_mu=prior_mu,
        prior_scale=prior_scale,
        mask=mask,
        weight=weight,
        state=state,
        noise=noise,
    )
    assert z is not None and kl is not None
    if standard:
        _small.keep_posterior(mu, scale, settings, options)
    if reduction == "mean" and mask is not None:
        kl = kl * mu.numel() / mask.expand(mu.shape).sum()
    return z, kl
