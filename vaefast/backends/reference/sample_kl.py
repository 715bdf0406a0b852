"""The posterior's sample and its KL divergence as differentiable PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._args import compute_dtype
from .._options import POSTERIOR, Posterior, Transform
from ._exact import clamp as closed_clamp
from ._exact import soft_clamp, whitened
from .noise import sample_noise

# Taylor coefficients 1/k! of (exp(x) - 1 - x) / x^2; 12 terms are exact to float64 rounding
# for |x| < 0.5.
_SERIES = tuple(1 / math.factorial(k) for k in range(2, 16))


def sample_kl(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    noise: Tensor | None,
    options: Posterior,
) -> tuple[Tensor | None, Tensor | None]:
    """(z, kl), each None where `options` does not ask for it."""
    dtype = compute_dtype(mu, scale, prior_mu, prior_scale)
    # Widened once: two conversions would add two gradients in the narrow dtype.
    wide_mu, wide_scale = mu.to(dtype), scale.to(dtype)
    z = kl = None
    if options.num_samples >= 0:
        std = standard_deviation(wide_scale, options.transform)
        eps = epsilon(mu, state, noise, options, dtype)
        z = (wide_mu + options.temperature * std * eps).to(mu.dtype)
    if options.reduce:
        logvar = log_variance(unmasked(wide_scale, mask), options.transform)
        elements = kl_elements(
            unmasked(wide_mu, mask),
            logvar,
            None if prior_mu is None else unmasked(prior_mu.to(dtype), mask),
            None if prior_scale is None else unmasked(prior_scale.to(dtype), mask),
            options.transform,
        )
        kl = reduce(elements, mask, weight, options.reduce) * options.factor
    return z, kl


def log_variance(scale: Tensor, transform: Transform) -> Tensor:
    """log sigma^2 from whatever parameter `scale` is."""
    scale = clamped(scale, transform.clamp)
    match transform.param:
        case "logvar":
            return scale
        case "log_std":
            return 2 * scale
        case "std":
            return 2 * torch.log(scale)
        case "var":
            return torch.log(scale)
        case _:
            return 2 * torch.log(F.softplus(scale, threshold=40) + transform.min_std)


def standard_deviation(scale: Tensor, transform: Transform) -> Tensor:
    """sigma, without a detour over its logarithm where `scale` is sigma itself."""
    if transform.param == "std":
        return clamped(scale, transform.clamp)
    if transform.param == "softplus":
        return F.softplus(clamped(scale, transform.clamp), threshold=40) + transform.min_std
    if transform.param == "var":
        return torch.sqrt(clamped(scale, transform.clamp))
    return torch.exp(0.5 * log_variance(scale, transform))


def clamped(scale: Tensor, clamp: tuple[float, ...]) -> Tensor:
    """`scale` within the bounds: cut off, or squashed by a tanh (NVAE)."""
    if not clamp:
        return scale
    low, high = clamp[:2]
    if len(clamp) == 2:
        return closed_clamp(scale, low, high)
    return soft_clamp(scale, low, high)


def kl_elements(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    transform: Transform,
) -> Tensor:
    """KL(N(mu, e^logvar) || prior) per element, exact where the two nearly coincide."""
    distance = mu if prior_mu is None else mu - prior_mu
    if prior_scale is None:
        return 0.5 * (distance**2 + expm1_minus_x(logvar))
    prior_logvar = log_variance(prior_scale, transform._replace(clamp=()))
    squared = whitened(distance, prior_logvar).square()
    return 0.5 * (squared + expm1_minus_x(logvar - prior_logvar))


def expm1_minus_x(x: Tensor) -> Tensor:
    """exp(x) - 1 - x without the cancellation near 0."""
    near = x.abs() < 0.5
    small = torch.where(near, x, 0.0)
    large = torch.where(near, 0.0, x)
    return torch.where(near, small * small * expm1_rest(small), torch.expm1(large) - large)


def expm1_rest(x: Tensor) -> Tensor:
    """(exp(x) - 1 - x) / x^2 for |x| < 0.5."""
    series = torch.full_like(x, _SERIES[-1])
    for coefficient in reversed(_SERIES[:-1]):
        series = series * x + coefficient
    return series


def unmasked(value: Tensor, mask: Tensor | None) -> Tensor:
    """`value` with 0.5 where the mask hides it: a NaN there would come back in the gradient."""
    return value if mask is None else torch.where(mask, value, 0.5)


def reduce(
    elements: Tensor, mask: Tensor | None, weight: Tensor | None, how: str, lead: int = 1
) -> Tensor:
    """Weighted sums of per-element values `[*lead, ...]` as `how` says.

    `"elem"` leaves them, `"sample"` sums over all but the leading dimensions, `"dim"` over the
    batch alone, `"sum"` over all.
    """
    if weight is not None:
        elements = elements * unmasked(weight.to(elements.dtype), mask)
    if mask is not None:
        elements = torch.where(mask, elements, 0.0)
    if how == "elem":
        return elements
    if how == "dim":
        return elements.sum(0)
    if how == "sum":
        return elements.sum()
    return elements.flatten(lead).sum(-1) if elements.dim() > lead else elements


def epsilon(
    mu: Tensor, state: Tensor | None, noise: Tensor | None, options: Posterior, dtype: torch.dtype
) -> Tensor:
    """The standard normals behind z: the given ones, or those of `state`."""
    if noise is not None:
        return noise.to(dtype)
    assert state is not None
    if options.num_samples == 0:
        return sample_noise(state, mu.shape, dtype, "normal", POSTERIOR, options.offset, 0)
    draws = [
        sample_noise(state, mu.shape, dtype, "normal", POSTERIOR, options.offset, k)
        for k in range(options.num_samples)
    ]
    return torch.stack(draws)
