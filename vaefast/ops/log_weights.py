"""Log importance weights of posterior samples: what every multi-sample bound is made of."""

from __future__ import annotations

from torch import Tensor

from .. import _args, random
from .._args import Clamp, Param
from .._explain import declined
from ..likelihoods import Likelihood, Params
from . import _monte_carlo_kl, _plans
from ._validate import check_scale
from .gaussian_kl import check_prior
from .nll import nll
from .rsample import transform_of


def log_weights(
    params: Params,
    target: Tensor,
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    *,
    likelihood: Likelihood | str,
    prior_mu: Tensor | None = None,
    prior_scale: Tensor | None = None,
    log_prior: Tensor | None = None,
    stop_posterior: bool = False,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    validate: bool = False,
    seed: random.Seed | None = None,
    generator: random.Generator | None = None,
    offset: int = 0,
) -> Tensor:
    """log w = log p(x|z) + log p(z) - log q(z|x), in nats.

    The target is broadcast over the samples, never repeated, and log p(z) - log q(z|x) is one
    pass over z.

    Args:
        params: the decoder's output for each sample, `[K, B, *data]`, a tensor or a tuple.
        target: `[B, *data]`.
        z: `[K, B, *latent]`, as `rsample(mu, scale, num_samples=K)` gives them; gradients flow
            through it.
        mu, scale: of the posterior that z was drawn from, `[B, *latent]`; scale may broadcast.
        likelihood, mask, weight, seed, generator, offset: of the reconstruction, as in `nll`. A
            mask or weight makes log p(x|z) a weighted sum.
        prior_mu, prior_scale: of a Gaussian prior, as in `gaussian_kl`; None for N(0, I).
        log_prior: instead of them: log p(z), `[K, B]`, of any other prior.
        stop_posterior: no gradient to mu and scale but the one through z: what the bounds `"stl"`
            and `"dreg"` of `importance_loss` take. The score term that it leaves out has mean
            zero under q and variance that does not vanish where q is exact.
        param, min_std, clamp: of scale, as in `rsample`.
        validate: as in `nll`, and check that a scale that is a std or variance is positive.

    Returns:
        `[K, B]` (`[B]` for z without a sample dimension), float32, or float64 if any parameter is.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, logvar, x = torch.zeros(8, 2), torch.zeros(8, 2), torch.ones(8, 10)
        >>> z = vf.rsample(mu, logvar, num_samples=5, seed=0)
        >>> log_w = vf.log_weights(torch.zeros(5, 8, 10), x, z, mu, logvar, likelihood="bernoulli")
        >>> log_w.shape, round(float(log_w[0, 0]), 4)
        (torch.Size([5, 8]), -6.9315)

    Source: Burda, Grosse & Salakhutdinov 2016, "Importance Weighted Autoencoders", section 3;
    Roeder, Wu & Duvenaud 2017, "Sticking the Landing", for `stop_posterior`.
    """
    own = scale
    settings = ("log_weights", param, min_std, clamp, log_prior is None)
    key, plan = _plans.find((z, mu, scale, prior_mu, prior_scale), settings)
    if plan is None:
        scale = check_prior(mu, scale, prior_mu, prior_scale)
        _monte_carlo_kl.check_samples(z, mu)
        transform = transform_of(param, min_std, clamp)
        if scale is not own and key is not None:
            declined("shape", f"{list(mu.shape)} and {list(own.shape)}")
            key = None
    if validate:
        check_scale("scale", scale, param, clamp)
        check_scale("prior_scale", prior_scale, param)
    reconstruction = nll(
        params,
        target,
        likelihood,
        mask=mask,
        weight=weight,
        reduction="sample",
        validate=validate,
        seed=seed,
        generator=generator,
        offset=offset,
    )
    lead = z.shape[: z.dim() - mu.dim() + 1]
    if not _args.same_shape(reconstruction.shape, lead):
        raise ValueError(
            f"params must have z's leading dimensions, {list(lead)}, got "
            f"{list(reconstruction.shape)}"
        )
    if log_prior is not None:
        if prior_mu is not None or prior_scale is not None:
            raise ValueError("log_prior excludes prior_mu and prior_scale, got both")
        _args.float_tensor("log_prior", log_prior)
        if not _args.same_shape(log_prior.shape, lead):
            raise ValueError(
                f"log_prior must be {list(lead)}, as z's leading dimensions, got "
                f"{list(log_prior.shape)}"
            )
    if stop_posterior:
        mu, scale = mu.detach(), scale.detach()
    if plan is not None:
        kl = _monte_carlo_kl.run_found(plan, z, mu, scale, prior_mu, prior_scale)
    else:
        kl = _monte_carlo_kl.run(
            z,
            mu,
            scale,
            transform,
            prior_mu=prior_mu,
            prior_scale=prior_scale,
            prior=log_prior is None,
            key=key,
        )
    if log_prior is not None:
        kl = kl - log_prior
    return -(kl + reconstruction)
