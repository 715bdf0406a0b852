"""The negative evidence lower bound, reconstruction and KL in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _args, likelihoods, random
from .._args import Clamp, Param, Reduction
from .._explain import declined
from ..likelihoods import Likelihood, Params
from . import _elbo_loss, _nll
from ._plans import recording
from ._register import direct
from ._validate import check_scale
from .gaussian_kl import FreeBitsPer, before_free_bits, gaussian_kl, inverse, with_free_bits
from .nll import nll


class ELBO(NamedTuple):
    """`loss` to call `backward()` on; `nll` and `kl` raw, detached, in nats per sample."""

    loss: Tensor
    nll: Tensor
    kl: Tensor


def elbo_loss(
    params: Params,
    target: Tensor,
    mu: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    kl: Tensor | None = None,
    likelihood: Likelihood | str,
    beta: float | Tensor = 1.0,
    capacity: float | Tensor | None = None,
    free_bits: float = 0.0,
    free_bits_per: FreeBitsPer = "dim",
    prior_mu: Tensor | None = None,
    prior_scale: Tensor | None = None,
    reduction: Reduction = "batchmean",
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    validate: bool = False,
    seed: random.Seed | None = None,
    generator: random.Generator | None = None,
    offset: int = 0,
) -> ELBO:
    """-ELBO = E_q[-log p(x|z)] + beta KL(q(z|x) || p(z)), in nats, at one sample z.

    Args:
        params, target, likelihood, mask, seed, generator, offset: of the reconstruction, as in
            `nll`.
        mu, scale, prior_mu, prior_scale, param, min_std, clamp: of the posterior, as in
            `gaussian_kl`, which is computed here.
        kl: instead of mu and scale: the KL per sample, `[B]`, as `sample_kl` gave it (or
            `[K, B]` beside params with a leading K); several are summed by the caller.
        beta: a number, a scalar tensor, or `[B]`, a weight per sample (beta-VAE).
        capacity: C of `beta * |kl - C|`, per sample (Burgess et al. 2018).
        free_bits, free_bits_per: as in `gaussian_kl`; beside `kl=` not per dimension.
        weight: on the reconstruction's elements; a `[B]` weight weighs the sample's whole loss.
        reduction: `"batchmean"` (the mean over samples), `"sum"`, `"mean"` (per data element) or
            `"sample"`.
        validate: as in `nll`, and check that a scale that is a std or variance is positive.

    Returns:
        `ELBO(loss, nll, kl)`, in nats: nll and kl before beta, capacity and free bits, averaged
        over the samples (per sample under `reduction="sample"`).

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together, or both or neither of
            `mu, scale` and `kl` are given.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, logvar = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> z, kl = vf.sample_kl(mu, logvar, seed=0)
        >>> logits, x = torch.zeros(8, 10), torch.ones(8, 10)
        >>> loss, nll, kl = vf.elbo_loss(logits, x, kl=kl, likelihood="bernoulli")
        >>> round(float(loss), 4), float(kl)
        (6.9315, 0.0)

    Source: Kingma & Welling 2014, equation 10; Higgins et al. 2017 for beta.
    """
    _args.one_of("reduction", reduction, ("batchmean", "sum", "mean", "sample"))
    posterior = _posterior(mu, scale, kl, free_bits, free_bits_per)
    param_0 = likelihoods.as_tuple(params)[0]
    model = likelihoods.resolve(likelihood)
    shape, lead = param_0.shape, model.lead(param_0, target)
    free = (free_bits == 0) is not True
    special = (
        "capacity"
        if capacity is not None
        else "reduction"
        if reduction != "batchmean"
        else "beta"
        if not isinstance(beta, (int, float))
        else "free_bits"
        if free
        else "mask"
        if mask is not None
        else "weight"
        if weight is not None
        else "validate"
        if validate
        else ""
    )
    sample_weight, apart = None, False
    if special:
        if isinstance(beta, Tensor):
            _per_sample("beta", beta, shape, lead)
        if isinstance(capacity, Tensor):
            _per_sample("capacity", capacity, shape, lead)
        if isinstance(weight, Tensor) and _args.same_shape(weight.shape, target.shape[:1]):
            sample_weight = weight
        apart = (
            reduction == "sample"
            or capacity is not None
            or (isinstance(beta, Tensor) and beta.dim() > 0)
            or sample_weight is not None
        )
    per_sample: Reduction = "sample" if apart else "batchmean"
    # The KL's own reduction: what its free bits are granted behind.
    first = per_sample
    if free:
        free_bits = _args.number("free_bits", free_bits)
        if apart and free_bits > 0 and free_bits_per != "sample":
            raise ValueError(
                f"free_bits_per={free_bits_per!r} is a maximum of a mean over the batch; with a "
                "capacity, a beta or weight per sample, or reduction='sample', take "
                "free_bits_per='sample'"
            )
        first = before_free_bits(per_sample, free_bits, free_bits_per)
        free = free_bits > 0
    if kl is None:
        assert posterior is not None
        if validate:
            check_scale("scale", posterior[1], param, clamp)
            check_scale("prior_scale", prior_scale, param)
        raw = gaussian_kl(
            *posterior,
            prior_mu,
            prior_scale,
            reduction=first,
            param=param,
            min_std=min_std,
            clamp=clamp,
        )
    else:
        _check_kl(kl, shape, lead)
        raw = kl = kl.to(_args.compute_dtype(kl))
    if special:
        declined("argument", f"{special} of elbo_loss")
    elif recording() and target.requires_grad:
        declined("constant")
    elif direct(raw) and (raw.is_cpu or raw.is_cuda) and raw.get_device() == target.get_device():
        assert not isinstance(beta, Tensor)
        tensors, _, plan = _nll.find(params, target, model, "batchmean", False)
        if plan is not None:
            return ELBO(*_elbo_loss.run_found(plan, tensors, target, raw, float(beta)))
    beta = _args.number_or_tensor("beta", beta)
    if capacity is not None:
        capacity = _args.number_or_tensor("capacity", capacity)
    data = nll(
        params,
        target,
        model,
        mask=mask,
        weight=weight,
        reduction=per_sample,
        validate=validate,
        seed=seed,
        generator=generator,
        offset=offset,
    )
    whole = raw
    if first == "dim":
        raw = raw.sum()
    elif not apart and (kl is not None or first == "sample"):
        raw = _args.mean(raw)
    cost = raw
    if free:
        cost = raw if first == "batchmean" else whole
        cost = with_free_bits(cost, free_bits, free_bits_per, per_sample, shape)
    if capacity is not None:
        cost = (cost - capacity).abs()
    if sample_weight is not None:
        cost = cost * sample_weight
    if isinstance(beta, Tensor) or torch.compiler.is_compiling():
        # A compiler takes a number as an operand; as alpha each new one would be compiled anew.
        loss = data + beta * cost
    else:
        # It saves no tensor, as the fast path does not: checkpointing may go either way.
        loss = torch.add(data, cost, alpha=float(beta))
    data, raw = data.detach(), raw.detach()
    if reduction == "sample":
        return ELBO(loss, data, raw)
    if apart:
        loss, data, raw = _args.mean(loss), _args.mean(data), _args.mean(raw)
    if reduction == "sum":
        loss = loss * float(_args.count(shape[:lead]))
    elif reduction == "mean":
        loss = _per_element(loss, model.elements(target), mask)
    return ELBO(loss, data, raw)


def _posterior(
    mu: Tensor | None, scale: Tensor | None, kl: Tensor | None, free_bits: float, per: str
) -> tuple[Tensor, Tensor] | None:
    """(mu, scale), or None where the KL is given."""
    _args.one_of("free_bits_per", per, ("dim", "sample", "total"))
    if kl is not None:
        if mu is not None or scale is not None:
            raise ValueError("elbo_loss takes mu and scale, or kl, not both")
        if per == "dim" and free_bits > 0:
            raise ValueError(
                "free_bits per dimension needs mu and scale: kl is summed over the dimensions; "
                "give mu and scale, or free_bits_per='sample' or 'total'"
            )
        return None
    if mu is None or scale is None:
        raise ValueError("elbo_loss takes mu and scale, or kl; both are missing")
    return mu, scale


def _per_sample(name: str, value: Tensor, shape: torch.Size, lead: int) -> None:
    """Checks that `value` is a scalar or one number per sample."""
    batch = shape[lead - 1 : lead]
    if value.numel() != 1 and not any(
        _args.same_shape(value.shape, s) for s in (batch, shape[:lead])
    ):
        raise ValueError(
            f"{name} must be a scalar or one value per sample, {list(batch)}, got "
            f"{list(value.shape)}"
        )


def _check_kl(kl: Tensor, shape: torch.Size, lead: int) -> None:
    _args.float_tensor("kl", kl)
    if not any(_args.same_shape(kl.shape, s) for s in (shape[:lead], shape[lead - 1 : lead])):
        raise ValueError(
            f"kl must be one value per sample, {list(shape[lead - 1 : lead])}, got {list(kl.shape)}"
        )


def _per_element(loss: Tensor, shape: torch.Size, mask: Tensor | None) -> Tensor:
    """Turns a mean over samples into one over data elements."""
    if mask is None:
        return loss * inverse(_args.count(shape[1:]))
    aligned = _args.broadcastable("mask", mask, shape, per_sample=True)
    return _args.over_kept(loss, shape[0], aligned, shape)
