"""The formulas in float64 of what the fuzzer calls, for all calls of a case at once.

Every tensor has the calls as its first dimension: `[CALLS, *shape]`. `lead` counts the dimensions
behind it that index samples: 1, or 2 with a leading K.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vaefast import likelihoods
from vaefast.backends.reference.likelihoods import FORMULAS
from vaefast.backends.reference.row_nll import logistic_mixture
from vaefast.likelihoods import Likelihood

LOG_2PI = math.log(2 * math.pi)
OPTIMAL_VARIANCE = 1e-12


def aligned(t: Tensor, dims: int, per_sample: int | None = None) -> Tensor:
    """`t` `[CALLS, *shape]` to broadcast from the right to `dims` dimensions behind the calls.

    `per_sample`: the batch size; a `[B]` tensor is then one value per sample.
    """
    shape = t.shape[1:]
    if per_sample is not None and len(shape) == 1 and dims > 1 and shape[0] == per_sample:
        return t.reshape(t.shape[0], per_sample, *[1] * (dims - 1))
    return t.reshape(t.shape[0], *[1] * (dims - len(shape)), *shape)


def clamped(scale: Tensor, clamp: Any) -> Tensor:
    """With gradient 1 on and between the bounds of a hard clamp, 0 outside."""
    if clamp is None:
        return scale
    if clamp == "soft":
        clamp = ("soft", -5.0, 5.0)
    if clamp[0] == "soft":
        return _soft_clamped(scale, *clamp[1:])
    low, high = clamp
    return torch.where((scale >= low) & (scale <= high), scale, scale.detach().clamp(low, high))


def _soft_clamped(scale: Tensor, low: float, high: float) -> Tensor:
    """m + h tanh(u), u = (s - m) / h; away from the middle by the distance to the nearer bound, as
    1 - tanh(u)^2, of which torch makes the derivative, is wrong where it is small."""
    middle, half = (low + high) / 2, (high - low) / 2
    u = (scale - middle) / half
    near = u.detach().abs() < 0.3
    distance = (high - low) * torch.sigmoid(-2 * torch.where(near, 1.0, u).abs())
    inside = middle + half * torch.tanh(torch.where(near, u, 0.0))
    return torch.where(near, inside, torch.where(u > 0, high - distance, low + distance))


# How the intermediate results are moved, where it is asked how far that moves the others.
_Rounding = Callable[[Tensor], Tensor]
_rounding: contextvars.ContextVar[_Rounding | None] = contextvars.ContextVar("r", default=None)


@contextlib.contextmanager
def rounded(by: _Rounding) -> Iterator[None]:
    """`by` gives, of a size, what a rounding may change of it: so much the logarithm of sigma^2 is
    off where it is made from another parameter."""
    token = _rounding.set(by)
    try:
        yield
    finally:
        _rounding.reset(token)


def log_variance(scale: Tensor, settings: dict[str, Any], clamp: bool = True) -> Tensor:
    """log sigma^2; a prior's scale is not clamped."""
    s = clamped(scale, settings.get("clamp")) if clamp else scale
    param, by = settings.get("param", "logvar"), _rounding.get()
    if param == "logvar":
        return s
    if param == "log_std":
        return 2 * s
    if param == "softplus":
        soft = torch.logaddexp(s, torch.zeros((), dtype=s.dtype))
        logvar = 2 * (soft + settings.get("min_std", 0.0)).log()
    else:
        logvar = 2 * s.log() if param == "std" else s.log()
    # A rounding of sigma is one of 1 in its logarithm, however near that is to 0.
    return logvar if by is None else logvar + by(1 + logvar.detach().abs())


def sample(mu: Tensor, logvar: Tensor, eps: Tensor, temperature: float) -> Tensor:
    """z, with eps `[CALLS, (K,) B, *latent]`."""
    if eps.dim() > mu.dim():
        mu, logvar = mu.unsqueeze(1), logvar.unsqueeze(1)
    return mu + temperature * (0.5 * logvar).exp() * eps


def expm1_minus(d: Tensor) -> Tensor:
    """e^d - 1 - d, near 0 by its series: a cancellation costs float64 too the digits asked for."""
    near = d.detach().abs() < 0.05
    if not near.any():
        return torch.expm1(d) - d
    small = torch.where(near, d, 0.0)
    series = torch.full_like(small, 1 / 362880)
    for k in (40320, 5040, 720, 120, 24, 6, 2):
        series = series * small + 1 / k
    large = torch.where(near, 1.0, d)
    return torch.where(near, series * small * small, torch.expm1(large) - large)


def kl(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    """KL(N(mu, e^logvar) || N(prior_mu, e^prior_logvar)) per element."""
    dims = mu.dim() - 1
    distance = mu if prior_mu is None else mu - aligned(prior_mu, dims)
    if prior_logvar is None:
        return 0.5 * (distance**2 + expm1_minus(logvar))
    prior = aligned(prior_logvar, dims)
    return 0.5 * (distance**2 * (-prior).exp() + expm1_minus(logvar - prior))


def weighted(elements: Tensor, mask: Tensor | None, weight: Tensor | None, lead: int = 1) -> Tensor:
    """The elements times the weight, and 0 where masked."""
    dims, batch = elements.dim() - lead, elements.shape[lead]
    if weight is not None:
        w = aligned(weight, dims, batch)
        elements = elements * (w.unsqueeze(1) if lead == 2 else w)
    if mask is not None:
        m = aligned(mask, dims, batch)
        elements = torch.where(m.unsqueeze(1) if lead == 2 else m, elements, 0.0)
    return elements


def by_sample(elements: Tensor, lead: int = 1) -> Tensor:
    return elements.flatten(lead + 1).sum(-1) if elements.dim() > lead + 1 else elements


def reduced(elements: Tensor, reduction: str, mask: Tensor | None, lead: int = 1) -> Tensor:
    """Of weighted elements; a mean over nothing is 0."""
    if reduction == "none":
        return elements
    if reduction == "sample":
        return by_sample(elements, lead)
    if reduction == "dim":
        return elements.sum(1) / max(1, elements.shape[1])
    total = elements.flatten(1).sum(1) if elements.dim() > 1 else elements
    if reduction == "sum":
        return total
    if reduction == "batchmean":
        return total / max(1, elements.shape[1 : lead + 1].numel())
    if mask is None:
        return total / max(1, elements.shape[1:].numel())
    ones = weighted(torch.ones_like(elements), mask, None, lead)
    return total / ones.flatten(1).sum(1).clamp(min=1)


def free_bits(
    elements: Tensor, bits: float, per: str, reduction: str, mask: Tensor | None
) -> Tensor:
    """The KL with free bits, of weighted `[CALLS, B, *latent]`; with gradient 1 on the bound."""

    def floor(values: Tensor) -> Tensor:
        return torch.where(values >= bits, values, bits)

    batch, width = elements.shape[1], elements.shape[2:].numel()
    if per == "sample":
        each = floor(by_sample(elements))
        if reduction == "sample":
            return each
        total = each.sum(1) / max(1, batch)
    elif per == "dim":
        each = floor(elements.sum(1) / max(1, batch))
        if reduction == "dim":
            return each
        total = each.flatten(1).sum(1) if each.dim() > 1 else each
    else:
        total = floor(by_sample(elements).sum(1) / max(1, batch))
    if reduction == "sum":
        return total * batch
    if reduction != "mean":
        return total
    total = total / max(1, width)
    if mask is None:
        return total if width else total * 0.0
    kept = weighted(torch.ones_like(elements), mask, None).flatten(1).sum(1)
    return torch.where(kept > 0, total * elements.shape[1:].numel() / kept.clamp(min=1), 0.0)


def likelihood(
    name: str, numbers: tuple[float, ...], x: Tensor, params: Sequence[Tensor]
) -> Tensor:
    """-log p per element, `[CALLS, (K,) B, *data]`, of a form with its numbers."""
    dims = max(p.dim() for p in params) - 1
    lead = dims - (x.dim() - 1)
    x = x.unsqueeze(1) if lead else x
    theta = tuple(aligned(p, dims) for p in params)
    if name == "bernoulli":
        return F.softplus(theta[0], threshold=40) - x * theta[0]
    if name == "bernoulli_probs":
        p = theta[0]
        return -(x * p.log().clamp(min=-100) + (1 - x) * torch.log1p(-p).clamp(min=-100))
    if name == "gaussian_fixed":
        return (x - theta[0]) ** 2 * numbers[0] + numbers[1]
    if name == "gaussian_scalar":
        return 0.5 * ((x - theta[0]) / theta[1]) ** 2 + theta[1].log() + numbers[0]
    if name == "gaussian":
        return 0.5 * ((x - theta[0]) ** 2 * (-theta[1]).exp() + theta[1]) + numbers[0]
    if name == "poisson":
        rest = torch.lgamma(x + 1) if numbers[0] else 0.0
        return theta[0].exp() - x * theta[0] + rest
    if name == "poisson_rate":
        rest = torch.lgamma(x + 1) if numbers[0] else 0.0
        return theta[0] - x * theta[0].log() + rest
    return FORMULAS[name](x.expand(torch.broadcast_shapes(x.shape, theta[0].shape)), theta, numbers)


def optimal(errors: Tensor, counts: Tensor, constant: float) -> Tensor:
    """Elements of the Gaussian at std^2 = the mean squared error, at least `OPTIMAL_VARIANCE`,
    before the weights.

    `errors` are the squares, `counts` the weights of both, masked ones 0.
    """
    total = counts.flatten(1).sum(1)
    # Of no element: any number, as nothing is multiplied by it.
    total = torch.where(total > 0, total, 1.0)
    variance = (errors * counts).flatten(1).sum(1) / total
    variance = torch.where(variance >= OPTIMAL_VARIANCE, variance, OPTIMAL_VARIANCE)
    variance = variance.reshape(-1, *[1] * (errors.dim() - 1))
    return errors / (2 * variance) + 0.5 * variance.log() + constant


def rows(model: Likelihood, x: Tensor, params: Tensor, lead: int) -> Tensor:
    """-log p per position of a likelihood with a class dimension."""
    at = model.class_dim + params.dim() if model.class_dim < 0 else model.class_dim + lead
    if model.name == "categorical":
        last = params.movedim(at, -1)
        if not last.shape[-1]:
            return last.sum(-1) + math.nan
        x = x.long()
        index = (x.unsqueeze(1) if lead == 2 else x).expand(last.shape[:-1])
        return torch.logsumexp(last, -1) - last.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    if model.name == "multinomial":
        x = x.unsqueeze(1) if lead == 2 else x
        total = x.sum(-1)
        value = -(x * params).sum(-1)
        if params.shape[-1]:
            value = value + total * torch.logsumexp(params, -1)
        if model.const:
            value = value - torch.lgamma(total + 1) + torch.lgamma(x + 1).sum(-1)
        return value
    if model.name != "discretized_logistic_mixture":
        raise NotImplementedError(f"no formula of {model.name}")
    packed = params.movedim(at, -1)
    pixels = x.movedim(at - lead + 1, -1)
    pixels = (pixels.unsqueeze(1) if lead == 2 else pixels).expand(
        *packed.shape[:-1], model.channels
    )
    top = 2.0**model.bits - 1
    width = (model.high - model.low) / top
    numbers = (1 / width, -model.low / width, model.low, width, top, model.min_log_scale)
    flat = packed.reshape(-1, packed.shape[-1], 1)
    target = pixels.reshape(-1, model.channels, 1)
    values = logistic_mixture(
        flat, (target,), (*numbers, float(model.mixtures), float(model.channels))
    )
    return values.reshape(packed.shape[:-1])


def log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, e^logvar) per element, constants included."""
    return -0.5 * ((z - mu) ** 2 * (-logvar).exp() + logvar + LOG_2PI)


def summed(elements: Tensor, lead: int) -> Tensor:
    """Over the latent dimensions behind `lead` ones (and the calls)."""
    return elements.flatten(lead + 1).sum(-1) if elements.dim() > lead + 1 else elements


def mixture_log_prob(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> Tensor:
    """z `[CALLS, N, D]`, mu and logvar `[CALLS, K, D]`."""
    pairs = log_normal(z.unsqueeze(2), mu.unsqueeze(1), logvar.unsqueeze(1)).sum(-1)
    if log_weights is None:
        return torch.logsumexp(pairs, 2) - math.log(max(1, mu.shape[1]))
    return torch.logsumexp(pairs + log_weights.unsqueeze(1), 2)


def tc_terms(
    z: Tensor, mu: Tensor, logvar: Tensor, dataset_size: int, method: str
) -> tuple[Tensor, Tensor, Tensor]:
    """z, mu, logvar `[CALLS, B, D]` (Chen et al. 2018, appendix C)."""
    batch = z.shape[1]
    pairs = log_normal(z.unsqueeze(2), mu.unsqueeze(1), logvar.unsqueeze(1))
    weights = torch.full((batch, batch), 1 / (dataset_size * max(1, batch)), dtype=z.dtype)
    if method == "mss":
        m = batch - 1
        weights.fill_(1 / m)
        for i in range(batch):
            weights[i, (i + 1) % batch] = (dataset_size - m) / (dataset_size * m)
        weights.fill_diagonal_(1 / dataset_size)
    log_w = weights.log()
    log_qz = torch.logsumexp(log_w + pairs.sum(-1), 2)
    log_product = torch.logsumexp(log_w[..., None] + pairs, 2).sum(-1)
    log_qzx = log_normal(z, mu, logvar).sum(-1)
    log_pz = -0.5 * (z**2 + LOG_2PI).sum(-1)
    return log_qzx - log_qz, log_qz - log_product, log_product - log_pz


def mmd(
    x: Tensor, y: Tensor, kernel: str, scales: Sequence[float] | None, unbiased: bool
) -> Tensor:
    """x `[CALLS, N, D]`, y `[CALLS, M, D]`."""
    dims = x.shape[2]
    if scales is None:
        divisors = [2.0 * dims * s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)]
    else:
        divisors = [2.0 * s * s if kernel == "rbf" else 2.0 * dims * s for s in scales]

    def k(a: Tensor, b: Tensor) -> Tensor:
        squared = ((a.unsqueeze(2) - b.unsqueeze(1)) ** 2).sum(-1).unsqueeze(-1)
        c = torch.tensor(divisors, dtype=a.dtype)
        return (torch.exp(-squared / c) if kernel == "rbf" else c / (c + squared)).sum(-1)

    def within(a: Tensor) -> Tensor:
        n, values = a.shape[1], k(a, a)
        if not unbiased:
            return values.mean((1, 2))
        return (values.sum((1, 2)) - values.diagonal(dim1=1, dim2=2).sum(1)) / (n * (n - 1))

    return within(x) + within(y) - 2 * k(x, y).mean((1, 2))


def bound(log_w: Tensor, name: str, settings: dict[str, Any]) -> tuple[Tensor, ...]:
    """The losses per sample `[CALLS, B]` of a bound on log weights `[CALLS, K, B]`."""

    def mean_exp(values: Tensor, dim: int = 1) -> Tensor:
        return torch.logsumexp(values, dim) - math.log(values.shape[dim])

    if name == "dreg":
        w = torch.softmax(log_w.detach(), 1)
        term = (w**2 * log_w).sum(1)
        return (-(mean_exp(log_w.detach()) + term - term.detach()),)
    if name == "ciwae":
        beta = settings.get("beta", 0.5)
        return (-(beta * log_w.mean(1) + (1 - beta) * mean_exp(log_w)),)
    if name in ("miwae", "piwae"):
        groups = settings["groups"]
        split = log_w.unflatten(1, (groups, log_w.shape[1] // groups))
        miwae = -mean_exp(split, 2).mean(1)
        return (miwae,) if name == "miwae" else (miwae, -mean_exp(log_w))
    if name == "renyi":
        alpha = settings.get("alpha", 0.5)
        if alpha == 1:
            return (-log_w.mean(1),)
        return (-mean_exp((1 - alpha) * log_w) / (1 - alpha),)
    return (-mean_exp(log_w),)


def known(name: str) -> type[Likelihood]:
    """The class of a registered likelihood."""
    return {**likelihoods.registered(), **likelihoods.registered_rows()}[name]
