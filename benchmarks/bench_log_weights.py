"""Importance weights of K samples: the latent part alone, and with a Bernoulli reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import vaefast as vf

from .case import BOTH, COMPILED, Inputs, OpCase, Shape, leaf

PIXELS = 784
LOG_2PI = math.log(2 * math.pi)


def latent(k: int) -> Callable[..., tuple[Tensor, ...]]:
    def textbook(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        std = torch.exp(0.5 * logvar)
        z = mu + std * torch.randn(k, *mu.shape, device=mu.device)
        log_q = -0.5 * (((z - mu) / std) ** 2 + logvar + LOG_2PI).sum(2)
        return z, log_q + 0.5 * (z**2 + LOG_2PI).sum(2)

    return textbook


def latent_distributions(k: int) -> Callable[..., tuple[Tensor, ...]]:
    def formula(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        posterior = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
        prior = Normal(mu.new_zeros(()), mu.new_ones(()), validate_args=False)
        z = posterior.rsample((k,))
        return z, (posterior.log_prob(z) - prior.log_prob(z)).sum(2)

    return formula


def latent_fused(k: int) -> Callable[..., tuple[Tensor, ...]]:
    def formula(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        return vf.sample_kl(mu, logvar, num_samples=k, estimator="monte_carlo")

    return formula


def latent_inputs(shape: Shape, device: torch.device) -> Inputs:
    _, *posterior = shape
    mu, logvar = torch.randn(2, *posterior, device=device)
    upstream = (torch.randn(shape, device=device), torch.full(shape[:2], 0.01, device=device))
    return Inputs((leaf(mu), leaf(0.5 * logvar)), (), upstream)


def textbook(logits: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, x: Tensor) -> tuple[Tensor]:
    repeated = x.expand_as(logits)
    log_px = -F.binary_cross_entropy_with_logits(logits, repeated, reduction="none").sum(2)
    log_q = -0.5 * ((z - mu) ** 2 * torch.exp(-logvar) + logvar + LOG_2PI).sum(2)
    log_w = log_px - 0.5 * (z**2 + LOG_2PI).sum(2) - log_q
    return (-(torch.logsumexp(log_w, 0) - math.log(len(log_w))).mean(),)


def distributions(
    logits: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, x: Tensor
) -> tuple[Tensor]:
    posterior = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    prior = Normal(mu.new_zeros(()), mu.new_ones(()), validate_args=False)
    log_px = Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(2)
    log_w = log_px + (prior.log_prob(z) - posterior.log_prob(z)).sum(2)
    return (-(torch.logsumexp(log_w, 0) - math.log(len(log_w))).mean(),)


def fused(logits: Tensor, z: Tensor, mu: Tensor, logvar: Tensor, x: Tensor) -> tuple[Tensor]:
    log_w = vf.log_weights(logits, x, z, mu, logvar, likelihood="bernoulli")
    return (vf.importance_loss(log_w),)


def inputs(shape: Shape, device: torch.device) -> Inputs:
    k, batch, _ = shape
    z = torch.randn(shape, device=device)
    mu, logvar = torch.randn(2, *shape[1:], device=device)
    logits = torch.randn(k, batch, PIXELS, device=device)
    leaves = tuple(leaf(t) for t in (logits, z, mu, 0.5 * logvar))
    return Inputs(leaves, (torch.rand(batch, PIXELS, device=device),), (None,))


class LatentCase(OpCase):
    """Every output is random, so what is compared is their mean with the closed form."""

    def check(self, inputs: Inputs, device: torch.device) -> None:
        want = vf.gaussian_kl(*inputs.leaves, reduction="sample").mean()
        for name in self.implementations(device):
            if name == COMPILED:
                continue
            run, backend = self.call(name, BOTH, inputs)
            with vf.backend(backend):
                (z, kl), _ = run()
            assert z.shape == self.shape and kl.shape == self.shape[:2]
            error = kl.std() / math.sqrt(kl.numel())
            assert (kl.mean() - want).abs() < 6 * error, f"{self.name}, {name}"


def cases() -> list[OpCase]:
    shape = (64, 128, 50)
    return [
        LatentCase(
            "log_weights",
            shape,
            latent_inputs,
            {"eager": latent(shape[0]), "distributions": latent_distributions(shape[0])},
            latent_fused(shape[0]),
            variant="latent",
            noisy=True,
            rereads=True,
            targets={"eager": 3.0, "compiled": 11.0},
            small_shape=(64, 5, 5),
        ),
        OpCase(
            "log_weights",
            shape,
            inputs,
            {"eager": textbook, "distributions": distributions},
            fused,
            variant="bernoulli 784",
            rereads=True,
        ),
    ]


def test_log_weights(measure: Callable[[], None]) -> None:
    measure()
