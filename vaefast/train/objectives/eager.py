"""A training step's loss as the textbook writes it: what the demo times the operators against."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...likelihoods import Gaussian, Laplace, Likelihood, Params
from ..models import VAE


def eager_loss(model: VAE, x: Tensor, *, beta: float = 1.0) -> Tensor:
    """`step_loss(...).loss` as it is usually written; see `eager_nll` for the likelihoods."""
    mu, logvar = model.encode(x)
    z, kl = eager_sample_kl(mu, logvar)
    return (eager_nll(model.decode(z), x, model.likelihood()) + beta * kl).mean()


def eager_sample_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """z and the KL per sample: the textbook formulas."""
    std = torch.exp(0.5 * logvar)
    z = mu + std * torch.randn_like(std)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)
    return z, kl


def eager_nll(params: Params, x: Tensor, likelihood: Likelihood) -> Tensor:
    """-log p(x|z) per sample for the likelihoods of `HAS_EAGER`: the textbook formulas."""
    assert isinstance(params, Tensor)
    return _EAGER[likelihood.name](params, x, likelihood).flatten(1).sum(1)


def _eager_bernoulli(logits: Tensor, x: Tensor, likelihood: Likelihood) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none")


def _eager_gaussian(mean: Tensor, x: Tensor, likelihood: Likelihood) -> Tensor:
    assert isinstance(likelihood, Gaussian) and isinstance(likelihood.std, Tensor)
    std = likelihood.std
    return 0.5 * ((x - mean) / std) ** 2 + torch.log(std) + 0.5 * math.log(2 * math.pi)


def _eager_laplace(loc: Tensor, x: Tensor, likelihood: Likelihood) -> Tensor:
    assert isinstance(likelihood, Laplace) and isinstance(likelihood.scale, Tensor)
    return (x - loc).abs() / likelihood.scale + torch.log(2 * likelihood.scale)


_EAGER: dict[str, Callable[[Tensor, Tensor, Likelihood], Tensor]] = {
    "bernoulli": _eager_bernoulli,
    "gaussian": _eager_gaussian,
    "laplace": _eager_laplace,
}
HAS_EAGER = tuple(_EAGER)
