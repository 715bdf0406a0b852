"""A VAE whose prior is the mixture of its posteriors at learned pseudo-inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import random
from ...ops.mixture_log_prob import mixture_log_prob
from ...ops.monte_carlo_kl import monte_carlo_kl
from ...ops.rsample import rsample
from .. import InputError
from ._base import Draw, Estimator, register
from ._vae import VAE


@register("vamp")
class VampVAE(VAE):
    """p(z) = 1/K sum_k q(z|u_k), the u_k learned, as the encoder is shown data; the KL is
    log q(z|x) - log p(z) at a sample.

    Args:
        pseudo_inputs: K.

    The others as in `Model`.

    Source: Tomczak and Welling 2018, "VAE with a VampPrior".
    """

    closed_kl = False

    def __init__(self, shape: Sequence[int], *, pseudo_inputs: int = 100, **common: Any) -> None:
        super().__init__(shape, **common)
        if pseudo_inputs < 1:
            raise InputError(f"pseudo_inputs must be at least 1, got {pseudo_inputs}")
        self.pseudo = nn.Parameter(torch.rand(pseudo_inputs, *self.head.inputs))

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """As `Model.begin`; the pseudo-inputs begin as data."""
        super().begin(x)
        count = len(self.pseudo)
        self.pseudo.copy_(self.head.show(x[torch.arange(count) * len(x) // count]))

    def components(self) -> tuple[Tensor, Tensor]:
        """mu and logvar of the prior's components, `[K, latent]` each."""
        mu, logvar = self.encoder(self.pseudo).chunk(2, dim=1)
        return mu, logvar

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of z `[..., latent]`."""
        return mixture_log_prob(z, *self.components())

    def from_units(self, units: Tensor) -> Tensor:
        """As `Model.from_units`, by the mixture's mean and variance: no normal's shape."""
        mu, logvar = self.components()
        var = logvar.exp().mean(0) + mu.var(0, correction=0)
        return mu.mean(0) + var.sqrt() * units

    def prior(self, count: int, *, seed: int | None = None) -> Tensor:
        """`count` codes, each from a component drawn evenly."""
        mu, logvar = self.components()
        state = random.make_state(mu, count, seed)
        # Another purpose than the posterior's, which the noise below has: another stream.
        u = random.uniform(torch.Size((count,)), state, purpose=random.LIKELIHOOD)
        which = (u * len(mu)).long().clamp(max=len(mu) - 1)
        return rsample(mu[which], logvar[which], seed=state)

    def draw(
        self,
        x: Tensor,
        *,
        num_samples: int | None = None,
        estimator: Estimator = "closed",
        seed: int | None = None,
        offset: int = 0,
    ) -> Draw:
        """As `Model.draw`; the KL is an estimate at the sample in any case."""
        mu, logvar = self.encode(x)
        z = rsample(mu, logvar, num_samples=num_samples, seed=seed, offset=offset * self.latent)
        return Draw(z, monte_carlo_kl(z, mu, logvar, prior=self.log_prior))
