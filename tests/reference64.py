"""Formulas and noise in float64, written apart from the library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def clamped(scale: Tensor, clamp: object) -> Tensor:
    """`scale` within the bounds as api.md defines them."""
    if clamp is None:
        return scale
    if clamp == "soft":
        return 5 * torch.tanh(scale / 5)
    if clamp[0] == "soft":
        _, low, high = clamp
        middle, half = (low + high) / 2, (high - low) / 2
        return middle + half * torch.tanh((scale - middle) / half)
    low, high = clamp
    # Its gradient is 1 on the bounds; that of torch's clamp is 0 there from 2.14 on.
    return torch.where((scale >= low) & (scale <= high), scale, scale.detach().clamp(low, high))


def log_variance(
    scale: Tensor, param: str = "logvar", min_std: float = 0.0, clamp: object = None
) -> Tensor:
    """log sigma^2."""
    s = clamped(scale, clamp)
    return {
        "logvar": lambda: s,
        "log_std": lambda: 2 * s,
        "std": lambda: 2 * s.log(),
        "var": lambda: s.log(),
        "softplus": lambda: 2 * (torch.logaddexp(s, torch.zeros_like(s)) + min_std).log(),
    }[param]()


def kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | float = 0.0,
    prior_logvar: Tensor | None = None,
) -> Tensor:
    """KL(N(mu, e^logvar) || N(prior_mu, e^prior_logvar)) per element."""
    if prior_logvar is None:
        prior_logvar = torch.zeros((), dtype=mu.dtype, device=mu.device)
    d = logvar - prior_logvar
    squared = (mu - prior_mu) ** 2 * (-prior_logvar).exp()
    # Near 0 by its series: a cancellation costs float64 too the digits that are asked for.
    series = d**2 / 2 + d**3 / 6 + d**4 / 24 + d**5 / 120 + d**6 / 720
    gap = torch.where(d.abs() < 1e-3, series, torch.expm1(d) - d)
    return 0.5 * (squared + gap)


def weighted(elements: Tensor, mask: Tensor | None, weight: Tensor | None, lead: int = 1) -> Tensor:
    """Elements with what is masked at 0, times the weight; `[B]` is one per sample."""
    sample_shape = elements.shape[lead - 1 :]

    def aligned(t: Tensor) -> Tensor:
        if t.dim() == 1 and len(sample_shape) > 1 and t.shape[0] == sample_shape[0]:
            return t.reshape(-1, *[1] * (len(sample_shape) - 1))
        return t

    if weight is not None:
        elements = elements * aligned(weight).to(elements.dtype)
    if mask is not None:
        elements = torch.where(aligned(mask), elements, torch.zeros_like(elements))
    return elements


def reduced(elements: Tensor, reduction: str, mask: Tensor | None, lead: int = 1) -> Tensor:
    """Weighted elements `[*lead, ...]` under a reduction of the public functions, whose means over
    nothing are 0."""
    samples = elements.shape[:lead]
    each = elements.reshape(*samples, elements.shape[lead:].numel()).sum(-1)
    if reduction == "mean" and mask is not None:
        ones = weighted(torch.ones_like(elements), mask, None, lead)
        return elements.sum() / ones.sum().clamp(min=1)
    return {
        "none": lambda: elements,
        "sample": lambda: each,
        "batchmean": lambda: each.sum() / max(1, each.numel()),
        "sum": lambda: elements.sum(),
        "mean": lambda: elements.sum() / max(1, elements.numel()),
        "dim": lambda: elements.sum(0) / max(1, len(elements)),
    }[reduction]()


def density(form: str, x: Tensor, params: Sequence[Tensor], model: object) -> Tensor:
    """-log p(x) per element, constants included."""
    return DENSITIES[form](x, *params, model)


def _log_prob(distribution: torch.distributions.Distribution, x: Tensor) -> Tensor:
    return -distribution.log_prob(x)


def _bernoulli_probs(x: Tensor, p: Tensor, model: object) -> Tensor:
    return -(x * p.log().clamp(min=-100) + (1 - x) * torch.log1p(-p).clamp(min=-100))


def _negative_binomial(x: Tensor, mu: Tensor, theta: Tensor) -> torch.Tensor:
    # A quotient of gamma functions for each count, as the textbook has it.
    coefficient = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return -(
        coefficient + theta * torch.log(theta / (theta + mu)) + x * torch.log(mu / (theta + mu))
    )


def _zero_inflated(x: Tensor, mu: Tensor, theta: Tensor, logits: Tensor, model: object) -> Tensor:
    counted = F.logsigmoid(-logits) - _negative_binomial(x, mu, theta)
    lost = torch.where(x == 0, F.logsigmoid(logits), -torch.inf)
    return -torch.where(x == 0, torch.logaddexp(counted, lost), counted)


def _normal(x: Tensor, mean: Tensor, std: Tensor | float) -> Tensor:
    return _log_prob(torch.distributions.Normal(mean, std, validate_args=False), x)


def _laplace(x: Tensor, loc: Tensor, scale: Tensor | float) -> Tensor:
    return _log_prob(torch.distributions.Laplace(loc, scale, validate_args=False), x)


def _poisson(x: Tensor, rate: Tensor) -> Tensor:
    return _log_prob(torch.distributions.Poisson(rate, validate_args=False), x)


DENSITIES = {
    "bernoulli": lambda x, t, m: -(x * F.logsigmoid(t) + (1 - x) * F.logsigmoid(-t)),
    "bernoulli_probs": _bernoulli_probs,
    "gaussian_fixed": lambda x, mean, m: _normal(x, mean, m.std),
    "gaussian_scalar": lambda x, mean, std, m: _normal(x, mean, std),
    "gaussian": lambda x, mean, logvar, m: _normal(x, mean, (0.5 * logvar).exp()),
    "laplace_fixed": lambda x, loc, m: _laplace(x, loc, m.scale),
    "laplace_scalar": lambda x, loc, scale, m: _laplace(x, loc, scale),
    "laplace": lambda x, loc, log_scale, m: _laplace(x, loc, log_scale.exp()),
    "poisson": lambda x, log_rate, m: _poisson(x, log_rate.exp()),
    "poisson_rate": lambda x, rate, m: _poisson(x, rate),
    "negative_binomial": lambda x, mu, theta, m: _negative_binomial(x, mu, theta),
    "zero_inflated_negative_binomial": _zero_inflated,
}


def philox(counter: Sequence[np.ndarray], key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 (Salmon et al. 2011): counters as four arrays of words, `[..., 4]` words."""
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & mask, (p0 >> shift) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return np.stack([c0, c1, c2, c3], -1)


def words(seed: int, start: int, count: int, sample: int = 0, purpose: int = 0) -> np.ndarray:
    """The words of elements `start` to `start + count` of a stream, as uint64."""
    seed &= (1 << 64) - 1
    first, last = start // 4, (start + max(count, 1) - 1) // 4
    blocks = np.arange(first, last + 1, dtype=np.uint64)
    low, high = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)
    same = np.zeros_like(blocks)
    counter = (low, high, same + np.uint64(sample), same + np.uint64(purpose))
    flat = philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)
    return flat[start - 4 * first :][:count]


def uniforms(
    seed: int, start: int, count: int, sample: int = 0, purpose: int = 0, single: bool = True
) -> np.ndarray:
    """(word + 1) 2^-32, in float32's rounding where `single`, as float64."""
    kind = np.float32 if single else np.float64
    w = words(seed, start, count, sample, purpose).astype(kind)
    return (w * kind(2.0**-32) + kind(2.0**-32)).astype(np.float64)


def normals(
    seed: int, start: int, count: int, sample: int = 0, purpose: int = 0, single: bool = True
) -> np.ndarray:
    """Box-Muller of the stream's uniforms, as float64."""
    first = start - start % 4
    whole = (start + count - first + 3) // 4 * 4
    u = uniforms(seed, first, whole, sample, purpose, single).reshape(-1, 2)
    radius = np.sqrt(-2 * np.log(u[:, 0]))
    # By quarter turns: rounding 2 pi v itself would cost a digit.
    quarter = np.round(4 * u[:, 1])
    turned = (
        np.exp(0.5j * np.pi * (4 * u[:, 1] - quarter))
        * np.array([1, 1j, -1, -1j, 1])[quarter.astype(int)]
    )
    flat = np.stack([radius * turned.real, radius * turned.imag], -1).reshape(-1)
    return flat[start - first :][:count]


def noise(
    shape: Sequence[int],
    seed: int | Sequence[int],
    *,
    offset: int = 0,
    num_samples: int | None = None,
    single: bool = True,
) -> Tensor:
    """Posterior noise `[B, *latent]` or `[K, B, *latent]`; a sequence is one seed per sample."""
    count = int(np.prod(shape))
    draws = []
    for k in range(num_samples or 1):
        if isinstance(seed, int):
            flat = normals(seed, offset, count, k, single=single)
        else:
            row = count // shape[0] if shape[0] else 0
            rows = [normals(s, offset, row, k, single=single) for s in seed]
            flat = np.concatenate(rows) if rows else np.zeros(0)
        draws.append(torch.from_numpy(flat).reshape(tuple(shape)))
    return draws[0] if num_samples is None else torch.stack(draws)
