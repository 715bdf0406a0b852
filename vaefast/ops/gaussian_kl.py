"""KL divergence of diagonal Gaussians, exact where posterior and prior nearly coincide."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import _args
from .._args import Clamp, Param, Reduction
from ..backends._options import Posterior
from ..backends.reference._exact import clamp as closed_clamp
from . import _sample_kl
from ._sample_kl_operator import Others
from .rsample import transform_of

FreeBitsPer = Literal["dim", "sample", "total"]


def gaussian_kl(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None = None,
    prior_scale: Tensor | None = None,
    *,
    free_bits: float = 0.0,
    free_bits_per: FreeBitsPer = "dim",
    balance: float | None = None,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2)), in nats: by default its batch mean.

    Per element, with d = log sigma^2 - log prior_sigma^2,
    `0.5 * ((mu - prior_mu)^2 / prior_sigma^2 + (expm1(d) - d))`.

    Args:
        mu: `[B, *latent]`, float64, float32, bfloat16 or float16.
        scale: of mu's shape, or broadcasts to it; what it is, `param` says.
        prior_mu: broadcasts to mu; None for 0. Gradients flow to it.
        prior_scale: broadcasts to mu, with the same `param`, never clamped; None for sigma = 1.
        free_bits: nats below which the KL costs nothing and gives no gradient.
        free_bits_per: `"dim"`: max(free_bits, .) of each dimension's batch mean;
            `"sample"`: of each sample's KL; `"total"`: of the batch mean.
        balance: a in [0, 1]: the same value, whose gradient to the prior is multiplied by a and
            that to the posterior by 1 - a (KL balancing, DreamerV2's alpha); None for neither.
        param: `"logvar"`, `"log_std"`, `"std"`, `"var"` or `"softplus"`.
        min_std: the floor of sigma under `"softplus"`.
        clamp: bounds on scale, as in `rsample`.
        mask: bool, broadcasts to the elements; a `[B]` mask is one per sample.
        weight: float, likewise; sums are weighted, `batchmean` still divides by B.
        reduction: `"none"`, `"sample"`, `"batchmean"`, `"sum"`, `"mean"` or `"dim"` (per latent
            dimension, averaged over the batch). `sample_kl` has `"sample"` for its default.

    Returns:
        The KL in float32, or float64 if any parameter is.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together; free bits per dimension or
            in total are asked for with a reduction that keeps the samples apart; there is no prior
            to balance.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, logvar = torch.ones(4, 3), torch.zeros(4, 3)
        >>> float(vf.gaussian_kl(mu, logvar))
        1.5

    Source: Kingma & Welling 2014, appendix B; free bits: Kingma et al. 2016, appendix C.8; balance:
    Hafner et al. 2021, "Mastering Atari with Discrete World Models", algorithm 2.
    """
    others: Others = ()
    if not (prior_mu is prior_scale is mask is weight is None):
        others = (prior_mu, prior_scale, mask, weight, None)
    free = (free_bits == 0) is not True
    if free or balance is not None:
        free_bits, balance = checked_extras(
            free_bits, free_bits_per, reduction, balance, prior_mu, prior_scale
        )
        free = free_bits > 0
    settings = ("gaussian_kl", param, min_std, clamp, reduction, free, free_bits_per)
    scale, others, key, plan = _sample_kl.find(mu, scale, others, settings)
    if plan is not None:
        found: Tensor = _sample_kl.kl_found(plan, mu, scale, others, balance)
        if not free and reduction != "mean":
            return found
        kept = others[2] if others else None
        return finished(found, mu, kept, reduction, free_bits, free_bits_per)
    scale = check_prior(mu, scale, prior_mu, prior_scale)
    mask, weight = _args.mask_and_weight(mask, weight, mu.shape, mu)
    first = checked_reduction(reduction, free_bits, free_bits_per)
    transform = transform_of(param, min_std, clamp)
    how, factor = kernel_reduction(first, mu.shape)
    options = Posterior(transform, -1, 1.0, 0, how, factor)
    _, kl = _sample_kl.run(
        mu,
        scale,
        options,
        prior_mu=prior_mu,
        prior_scale=prior_scale,
        mask=mask,
        weight=weight,
        balance=balance,
        key=key,
    )
    assert kl is not None
    return finished(kl, mu, mask, reduction, free_bits, free_bits_per)


def finished(
    kl: Tensor, mu: Tensor, mask: Tensor | None, reduction: str, free_bits: float, per: str
) -> Tensor:
    """The kernel's KL with its free bits granted, a mean taken over what the mask keeps."""
    if free_bits > 0:
        kl = with_free_bits(kl, free_bits, per, reduction, mu.shape)
    if reduction == "mean" and mask is not None:
        kl = _args.over_kept(kl, mu.numel(), mask, mu.shape)
    return kl


def check_prior(
    mu: Tensor, scale: Tensor, prior_mu: Tensor | None, prior_scale: Tensor | None
) -> Tensor:
    """Checks the parameters of posterior and prior; the scale of mu's shape."""
    scale = _args.posterior(mu, scale)
    for name, value in (("prior_mu", prior_mu), ("prior_scale", prior_scale)):
        if value is not None:
            _args.float_tensor(name, value)
            _args.broadcastable(name, value, mu.shape)
    _args.same_device("mu", mu, prior_mu=prior_mu, prior_scale=prior_scale)
    return scale


def checked_extras(
    free_bits: float,
    per: str,
    reduction: Reduction,
    balance: float | None,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
) -> tuple[float, float | None]:
    """The free bits as a number, and the prior's share of the gradient as one in [0, 1], None for
    none; checks both."""
    free_bits = _args.number("free_bits", free_bits)
    before_free_bits(reduction, free_bits, per)
    return free_bits, _checked_balance(balance, prior_mu, prior_scale)


def checked_reduction(reduction: Reduction, free_bits: float, per: FreeBitsPer) -> Reduction:
    """As `before_free_bits`, of words that are checked first."""
    _args.one_of("reduction", reduction, (*_args.REDUCTIONS, "dim"))
    _args.one_of("free_bits_per", per, ("dim", "sample", "total"))
    return before_free_bits(reduction, free_bits, per)


def _checked_balance(
    balance: float | None, prior_mu: Tensor | None, prior_scale: Tensor | None
) -> float | None:
    if balance is None:
        return None
    if prior_mu is None and prior_scale is None:
        raise ValueError("balance needs prior_mu or prior_scale: N(0, I) has no gradient to weigh")
    value = _args.number("balance", balance)
    if not 0 <= value <= 1:
        raise ValueError(f"balance must be in [0, 1], got {value}")
    return value


def kernel_reduction(reduction: str, shape: torch.Size) -> tuple[str, float]:
    """The kernel's reduction and the factor on its result, for values `[B, *latent]`."""
    batch, elements = shape[0], _args.count(shape)
    match reduction:
        case "none":
            return "elem", 1.0
        case "sample":
            return "sample", 1.0
        case "sum":
            return "sum", 1.0
        case "dim":
            return "dim", inverse(batch)
        case "batchmean":
            return "sum", inverse(batch)
        case _:
            return "sum", inverse(elements)


def inverse(count: int) -> float:
    """1 / count; 0 for none: a mean over nothing is 0."""
    return 1.0 / count if count else 0.0


def before_free_bits(reduction: Reduction, free_bits: float, per: str) -> Reduction:
    """The reduction that free bits are granted behind; checks the three of them."""
    if free_bits < 0:
        raise ValueError(f"free_bits must be at least 0, got {free_bits}")
    if not free_bits > 0:
        return reduction
    if per == "sample":
        if reduction in ("none", "dim"):
            raise ValueError(
                f"free_bits_per='sample' takes no reduction={reduction!r}: the maximum is of a "
                "sample's KL"
            )
        return "sample"
    keeps = ("sample", "none") if per == "dim" else ("sample", "none", "dim")
    if reduction in keeps:
        raise ValueError(
            f"free_bits_per={per!r} takes no reduction={reduction!r}: the maximum is of a mean "
            "over the batch; take free_bits_per='sample' or another reduction"
        )
    return "dim" if per == "dim" else "batchmean"


def with_free_bits(
    kl: Tensor, free_bits: float, per: str, reduction: str, shape: torch.Size
) -> Tensor:
    """`kl`, reduced as `before_free_bits` says, with its free bits granted, reduced as asked."""
    kl = closed_clamp(kl, low=free_bits)
    batch, width = shape[0], _args.count(shape[1:])
    if per == "sample":
        if reduction == "sample":
            return kl
        total = _args.mean(kl)
    elif per == "dim":
        if reduction == "dim":
            return kl
        total = kl.sum()
    else:
        total = kl
    return total * {"batchmean": 1.0, "sum": batch, "mean": inverse(width)}[reduction]
