"""One training step's loss, fused and as the textbook writes it, and the ELBO on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..likelihoods import Gaussian, Laplace, Likelihood, Params
from ..ops.elbo_loss import ELBO, elbo_loss
from ..ops.nll import nll
from ..ops.sample_kl import sample_kl
from .models import VAE


def step_loss(model: VAE, x: Tensor, *, beta: float = 1.0, seed: int | None = None) -> ELBO:
    """-ELBO of x `[B, *shape]` at one sample of the posterior, by the fused operators."""
    mu, logvar = model.encode(x)
    z, kl = sample_kl(mu, logvar, seed=seed)
    return elbo_loss(model.decode(z), x, kl=kl, likelihood=model.likelihood(), beta=beta)


def autoencoder_loss(model: VAE, x: Tensor) -> ELBO:
    """Half the squared error per image at z = mu: no noise, no prior; kl is 0."""
    mu, _ = model.encode(x)
    error = nll(model.decode(mu), x, Gaussian(const=False))
    return ELBO(error, error.detach(), torch.zeros_like(error.detach()))


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


@torch.no_grad()
def held_out_elbo(
    model: VAE,
    x: Tensor,
    *,
    samples: int = 16,
    seed: int = 0,
    batch_size: int = 256,
    autoencoder: bool = False,
) -> ELBO:
    """The mean over x of -ELBO at beta = 1 (`loss`), its nll and its KL, in nats per sample.

    The same seed gives every model the same noise, so two of them compare.
    """
    totals = torch.zeros(2, dtype=torch.float64)
    for index, batch in enumerate(x.split(batch_size)):
        if autoencoder:
            part = autoencoder_loss(model, batch)
        else:
            mu, logvar = model.encode(batch)
            z, kl = sample_kl(mu, logvar, num_samples=samples, seed=seed * 2**32 + index)
            data = nll(model.decode(z), batch, model.likelihood())
            part = ELBO(data + kl.mean(), data, kl.mean())
        totals += len(batch) * torch.stack([part.nll, part.kl]).double().cpu()
    data, kl = totals / len(x)
    return ELBO(data + kl, data, kl)
