"""A posterior's sample and its KL divergence in one read of mu and scale."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .. import _args, random
from .._args import Clamp, Param, Reduction
from ..backends._options import Posterior
from . import _sample_kl, _sample_monte_carlo_kl
from ._sample_kl_operator import Others
from .gaussian_kl import (
    FreeBitsPer,
    check_prior,
    checked_extras,
    checked_reduction,
    finished,
    kernel_reduction,
)
from .rsample import noise_state, transform_of


def sample_kl(
    mu: Tensor,
    scale: Tensor,
    *,
    prior_mu: Tensor | None = None,
    prior_scale: Tensor | None = None,
    reduction: Reduction = "sample",
    free_bits: float = 0.0,
    free_bits_per: FreeBitsPer = "sample",
    balance: float | None = None,
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
    estimator: Literal["closed", "monte_carlo"] = "closed",
    stop_posterior: bool = False,
) -> tuple[Tensor, Tensor]:
    """(z, KL `[B]`): `rsample` and `gaussian_kl` of one posterior, in one read of mu and scale.

    With `estimator="monte_carlo"` the KL is what each sample says of it, log q(z|x) - log p(z):
    `log_weights`' latent part, so that IWAE's log weights are `-nll(...) - kl`. That is
    `rsample` and `monte_carlo_kl` without another read of z, forward or backward.

    Args:
        mu: `[B, *latent]`, float64, float32, bfloat16 or float16.
        scale: of mu's shape, or broadcasts to it; what it is, `param` says.
        prior_mu, prior_scale: the prior, as in `gaussian_kl`.
        reduction: of the KL: `"sample"` (`[B]`, what `elbo_loss(kl=...)` takes) or any other of
            `gaussian_kl`, whose own default is the mean over the batch, `"batchmean"`.
        free_bits, free_bits_per: as in `gaussian_kl`, but per sample by default: a maximum of a
            mean over the batch (`"dim"`, `"total"`) keeps no samples apart, and needs another
            reduction. `elbo_loss` then reports the KL with its free bits granted.
        balance: as in `gaussian_kl`, of the KL's gradient alone: what reaches mu and scale through
            z is the loss's own and keeps its weight.
        num_samples, temperature, seed, generator, noise, offset: of z, as in `rsample`.
        param, min_std, clamp: of scale, as in `rsample`.
        mask, weight: on the KL's elements, as in `gaussian_kl`.
        estimator: `"closed"`, the KL itself, or `"monte_carlo"`, its unbiased estimate at each
            sample, `[K, B]` (`[B]` where num_samples is None), for the reductions `"sample"`,
            `"batchmean"` (the mean of that) and `"sum"`; without mask, weight, free
            bits and balance.
        stop_posterior: of `"monte_carlo"`: no gradient to mu and scale but the one through z,
            as in `log_weights`, for the bound `"stl"`. (`"dreg"` weighs what passes through z,
            which here is not all of it: take `rsample` and `log_weights`.)

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

    Source: Kingma & Welling 2014, section 2.4 and appendix B; Burda et al. 2016 and Roeder et al.
    2017 for `"monte_carlo"` and `stop_posterior`.
    """
    others: Others = ()
    if not (prior_mu is prior_scale is mask is weight is noise is None):
        others = (prior_mu, prior_scale, mask, weight, noise)
    free = (free_bits == 0) is not True
    if free or balance is not None:
        free_bits, balance = checked_extras(
            free_bits, free_bits_per, reduction, balance, prior_mu, prior_scale
        )
        free = free_bits > 0
    key, plan = None, None
    if noise is None or (seed is None and generator is None):
        settings = (
            *("sample_kl", param, min_std, clamp, temperature, offset, reduction),
            *(num_samples, free, free_bits_per, estimator, stop_posterior, balance is None),
        )
        scale, others, key, plan = _sample_kl.find(mu, scale, others, settings)
    if plan is not None and estimator != "closed":
        state = noise_state(mu, num_samples, seed, generator, noise)
        beside = (others[0], others[1], state, noise) if others else (None, None, state, None)
        return _reduced(
            _sample_monte_carlo_kl.run_found(plan, mu, scale, *beside, stop_posterior), reduction
        )
    if plan is not None:
        found: tuple[Tensor, Tensor] = _sample_kl.run_found(
            plan, mu, scale, seed, generator, others, balance
        )
        if not free and reduction != "mean":
            return found
        kept = others[2] if others else None
        return found[0], finished(found[1], mu, kept, reduction, free_bits, free_bits_per)
    scale = check_prior(mu, scale, prior_mu, prior_scale)
    mask, weight = _args.mask_and_weight(mask, weight, mu.shape, mu)
    _args.one_of("estimator", estimator, ("closed", "monte_carlo"))
    first = checked_reduction(reduction, free_bits, free_bits_per)
    transform = transform_of(param, min_std, clamp)
    state = noise_state(mu, num_samples, seed, generator, noise)
    samples = 0 if num_samples is None else _args.integer("num_samples", num_samples)
    heat = _args.number("temperature", temperature)
    place = _args.integer("offset", offset)
    if estimator == "monte_carlo":
        if mask is not None or weight is not None:
            raise ValueError("mask and weight need estimator='closed', got 'monte_carlo'")
        if free_bits > 0:
            raise ValueError(
                "free_bits need estimator='closed', got 'monte_carlo': a floor on each estimate "
                "is none on its mean"
            )
        if balance is not None:
            raise ValueError(
                "balance needs estimator='closed', got 'monte_carlo': an estimate's gradient "
                "reaches the posterior through z too"
            )
        _args.one_of("reduction", reduction, ("sample", "batchmean", "sum"))
        return _reduced(
            _sample_monte_carlo_kl.run(
                mu,
                scale,
                Posterior(transform, samples, heat, place, "sample", 1.0),
                prior_mu=prior_mu,
                prior_scale=prior_scale,
                state=state,
                noise=noise,
                stop_posterior=stop_posterior,
                key=key,
            ),
            reduction,
        )
    if stop_posterior:
        raise ValueError("stop_posterior needs estimator='monte_carlo', got 'closed'")
    how, factor = kernel_reduction(first, mu.shape)
    options = Posterior(transform, samples, heat, place, how, factor)
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
        balance=balance,
        key=key,
    )
    assert z is not None and kl is not None
    return z, finished(kl, mu, mask, reduction, free_bits, free_bits_per)


def _reduced(result: tuple[Tensor, Tensor], reduction: str) -> tuple[Tensor, Tensor]:
    z, kl = result
    if reduction == "sample":
        return z, kl
    return z, _args.mean(kl) if reduction == "batchmean" else kl.sum()
