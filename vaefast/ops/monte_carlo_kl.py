"""KL of a posterior whose density is known at its samples only: a flow, a VampPrior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .. import _args
from .._args import Clamp, Param
from .._explain import declined
from . import _monte_carlo_kl, _plans
from .rsample import transform_of

Prior = tuple[Tensor, Tensor] | Callable[[Tensor], Tensor] | Tensor | None


def monte_carlo_kl(
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    *,
    log_det: Tensor | None = None,
    z_flow: Tensor | None = None,
    prior: Prior = None,
    stop_posterior: bool = False,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    reduction: Literal["sample", "batchmean", "sum"] = "sample",
) -> Tensor:
    """log q(z_T|x) - log p(z_T) at samples, in nats: an unbiased estimate of the KL.

    A flow `z_T = f(z_0)` has `log q(z_T|x) = log N(z_0; mu, sigma^2) - log |det df/dz_0|`.

    Args:
        z: z_0, samples of N(mu, sigma^2), `[K, B, *latent]` or `[B, *latent]`.
        mu, scale: `[B, *latent]`; scale may broadcast to that.
        log_det: log |det df/dz_0|, `[K, B]` or `[B]`; None for 0.
        z_flow: z_T, of z's shape; None where there is no flow.
        prior: None for N(0, I), a pair (mu, scale) as in `gaussian_kl`, a function from z_T to
            log p(z_T), such as `lambda z: vf.mixture_log_prob(z, ...)`, or log p(z_T) itself.
        stop_posterior: no gradient to mu and scale but through z, as in `log_weights`.
        param, min_std, clamp: of scale, as in `rsample`.
        reduction: `"sample"` (`[K, B]` or `[B]`), `"batchmean"` (the mean of that) or `"sum"`.

    Returns:
        The KL's estimate, reduced as asked, in float32, or float64 if any argument is.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, logvar = torch.ones(8, 2), torch.zeros(8, 2)
        >>> z = vf.rsample(mu, logvar, num_samples=1000, seed=0)
        >>> bool((vf.monte_carlo_kl(z, mu, logvar).mean() - 1.0).abs() < 0.1)
        True

    Source: Rezende & Mohamed 2015, "Variational Inference with Normalizing Flows", equation 15.
    """
    key, plan = None, None
    special = (
        "z_flow"
        if z_flow is not None
        else "a prior that is no pair of tensors"
        if prior is not None and not isinstance(prior, tuple)
        else ""
    )
    if special:
        declined("argument", special)
    else:
        given = (z, mu, scale, *(prior if isinstance(prior, tuple) else ()))
        settings = ("monte_carlo_kl", param, min_std, clamp, stop_posterior, reduction)
        key, plan = _plans.find(given, settings)
    if plan is not None:
        if stop_posterior:
            given = (z, mu.detach(), scale.detach(), *given[3:])
        lead = z.shape[: z.dim() - mu.dim() + 1]
        return _finished(_monte_carlo_kl.run_found(plan, *given), log_det, lead, reduction)
    own = scale
    scale = _args.posterior(mu, scale)
    if scale is not own and key is not None:
        declined("shape", f"{list(mu.shape)} and {list(own.shape)}")
        key = None
    _monte_carlo_kl.check_samples(z, mu)
    _args.one_of("reduction", reduction, ("sample", "batchmean", "sum"))
    transform = transform_of(param, min_std, clamp)
    lead = z.shape[: z.dim() - mu.dim() + 1]
    if stop_posterior:
        mu, scale = mu.detach(), scale.detach()
    if z_flow is not None and z_flow.shape != z.shape:
        raise ValueError(f"z_flow must have z's shape, {list(z.shape)}, got {list(z_flow.shape)}")
    prior_mu, prior_scale = prior if isinstance(prior, tuple) else (None, None)
    gaussian = prior is None or isinstance(prior, tuple)
    if gaussian and z_flow is None:
        kl = _monte_carlo_kl.run(
            z, mu, scale, transform, prior_mu=prior_mu, prior_scale=prior_scale, key=key
        )
    else:
        kl = _monte_carlo_kl.run(z, mu, scale, transform, prior=False)
        at = z if z_flow is None else z_flow
        if isinstance(prior, tuple):
            unclamped = transform._replace(clamp=())
            wide = [
                t if _args.same_shape(t.shape, mu.shape) else _args.expanded(t, mu.shape)
                for t in prior
            ]
            kl = kl - _monte_carlo_kl.run(at, wide[0], wide[1], unclamped, prior=False)
        else:
            kl = kl - _log_prior(prior, at, lead)
    return _finished(kl, log_det, lead, reduction)


def _finished(kl: Tensor, log_det: Tensor | None, lead: torch.Size, reduction: str) -> Tensor:
    """The flow's part taken off, and reduced."""
    if log_det is not None:
        _expect("log_det", log_det, lead)
        kl = kl - log_det
    if reduction == "sample":
        return kl
    return _args.mean(kl) if reduction == "batchmean" else kl.sum()


def _log_prior(
    prior: Callable[[Tensor], Tensor] | Tensor | None, z: Tensor, lead: torch.Size
) -> Tensor:
    if prior is None:
        wide = z.to(_args.compute_dtype(z)).reshape(*lead, _args.count(z.shape[len(lead) :]))
        return -0.5 * (wide.square().sum(-1) + math.log(2 * math.pi) * wide.shape[-1])
    value = prior if isinstance(prior, Tensor) else prior(z)
    _expect("prior", value, lead)
    return value


def _expect(name: str, value: Tensor, lead: torch.Size) -> None:
    _args.float_tensor(name, value)
    if not any(_args.same_shape(value.shape, s) for s in (lead, lead[-1:])):
        raise ValueError(
            f"{name} must have one value per sample, {list(lead)}, got {list(value.shape)}"
        )
