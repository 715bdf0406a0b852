"""The lecture's autoencoders: one network, and what makes it a VAE of one kind or another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import vaefast as vf

from .levels import Levels, gaussian_log_mass

LATENT, WIDTH = 16, 128
# Of the per-pixel variance: a quarter of the distance of two levels. Without it the density of a
# pixel that never changes grows for ever.
_LEAST_STD = 1 / 64


@dataclass(frozen=True)
class Kind:
    """A model: its decoder's likelihood, its posterior, and the weights in its objective.

    `kl` weighs the KL; `tc` its total correlation on top of that.
    """

    name: str
    likelihood: Literal["levels", "fixed", "learned", "optimal", "per_pixel", "error"]
    posterior: Literal["diagonal", "full", "none"] = "diagonal"
    kl: float = 1.0
    tc: float = 0.0


KINDS = {
    "autoencoder": Kind("autoencoder", "error", "none"),
    "vae": Kind("VAE", "levels"),
    "beta": Kind("beta-VAE", "levels", kl=4.0),
    "tc": Kind("beta-TCVAE", "levels", tc=3.0),
    "fixed": Kind("fixed variance", "fixed"),
    "learned": Kind("learned variance", "learned"),
    "optimal": Kind("optimal variance", "optimal"),
    "per_pixel": Kind("variance per pixel", "per_pixel"),
    "full": Kind("learned variance, full-covariance posterior", "learned", "full"),
}


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of `WIDTH`."""
    return nn.Sequential(
        nn.Linear(inputs, WIDTH),
        nn.SiLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.SiLU(),
        nn.Linear(WIDTH, outputs),
    )


class Autoencoder(nn.Module):
    """An encoder and a decoder of digits x `[B, 64]`, with `LATENT` numbers between them."""

    optimal: Tensor

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        codes = {
            "none": LATENT,
            "diagonal": 2 * LATENT,
            "full": LATENT + LATENT * (LATENT + 1) // 2,
        }
        self.encoder = perceptron(64, codes[kind.posterior])
        tensors = 2 if kind.likelihood in ("levels", "per_pixel") else 1
        self.decoder = perceptron(LATENT, tensors * 64)
        if kind.likelihood == "learned":
            self.log_std = nn.Parameter(torch.tensor(-1.0))
        # Of "optimal", the mean squared error over the batches that it was trained on.
        self.register_buffer("optimal", torch.tensor(1.0))

    def code(self, x: Tensor) -> Tensor:
        """The posterior's mean, or an autoencoder's code, `[B, LATENT]`."""
        return self.encoder(x)[:, :LATENT]  # type: ignore[no-any-return]

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu `[B, L]` and logvar `[B, L]`, or the Cholesky factor `[B, L, L]`."""
        out = self.encoder(x)
        mu, rest = out[:, :LATENT], out[:, LATENT:]
        if self.kind.posterior == "diagonal":
            return mu, rest
        rows, columns = torch.tril_indices(LATENT, LATENT)
        tril = rest.new_zeros(len(x), LATENT, LATENT)
        tril[:, rows, columns] = rest
        diagonal = torch.diagonal(tril, dim1=-2, dim2=-1)
        return mu, torch.tril(tril, -1) + torch.diag_embed(torch.exp(0.5 * diagonal))

    def sample(
        self, x: Tensor, num_samples: int | None = None, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """z `[B, L]` or `[K, B, L]`, and the KL `[B]`."""
        return self._sample(*self.posterior(x), num_samples, seed)

    def _sample(
        self, mu: Tensor, scale: Tensor, num_samples: int | None, seed: int | None
    ) -> tuple[Tensor, Tensor]:
        draw = vf.tril_sample_kl if self.kind.posterior == "full" else vf.sample_kl
        return draw(mu, scale, num_samples=num_samples, seed=seed)

    def parameters_of(self, z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The likelihood's parameters `[..., 64]` for z `[..., L]`."""
        out = self.decoder(z)
        if self.kind.likelihood == "levels":
            # A scale that begins at two levels, not at the range of all.
            loc, log_scale = out.chunk(2, dim=-1)
            return torch.sigmoid(loc), log_scale - 2.0
        if self.kind.likelihood == "per_pixel":
            mean, logvar = out.chunk(2, dim=-1)
            return mean, logvar.clamp(min=2 * math.log(_LEAST_STD))
        return out  # type: ignore[no-any-return]

    def likelihood(self) -> vf.likelihoods.Likelihood:
        """p(x|z) as it is trained."""
        kind = self.kind.likelihood
        if kind == "levels":
            return Levels()
        if kind == "learned":
            return vf.likelihoods.Gaussian(std=self.log_std.exp())
        if kind == "optimal":
            return vf.likelihoods.Gaussian(std="optimal")
        return vf.likelihoods.Gaussian()

    def loss(self, x: Tensor, *, dataset_size: int, seed: int | None = None) -> Tensor:
        """The objective at one sample of the posterior, in nats per digit."""
        if self.kind.posterior == "none":
            return vf.nll(self.parameters_of(self.code(x)), x, self.likelihood())
        mu, scale = self.posterior(x)
        z, kl = self._sample(mu, scale, None, seed)
        params = self.parameters_of(z)
        if self.kind.likelihood == "optimal" and torch.is_grad_enabled():
            assert isinstance(params, Tensor)
            # As it is over the batches: the model's std afterwards, when there is no batch.
            error = (params - x).square().mean().detach()
            self.optimal.lerp_(error, 0.05)
        out = vf.elbo_loss(params, x, kl=kl, likelihood=self.likelihood(), beta=self.kind.kl)
        if not self.kind.tc:
            return out.loss
        terms = vf.tc_terms(z, mu, scale, dataset_size=dataset_size)
        return out.loss + self.kind.tc * terms.tc.mean()

    def mean(self, z: Tensor) -> Tensor:
        """E[x|z], `[..., 64]`."""
        params = self.parameters_of(z)
        return Levels().mean(params) if self.kind.likelihood == "levels" else _first(params)

    def draw(self, z: Tensor, seed: int) -> Tensor:
        """x ~ p(x|z) of the 17 levels, `[..., 64]`."""
        params = self.parameters_of(z)
        if isinstance(params, Tensor):
            params = (params, 2 * torch.log(self.std()).expand_as(params))
        model = Levels() if self.kind.likelihood == "levels" else vf.likelihoods.Gaussian()
        x: Tensor = model.sample(params, seed=seed)
        return (x * 16).round().clamp(0, 16) / 16

    def std(self) -> Tensor:
        """The Gaussian decoder's one standard deviation."""
        if self.kind.likelihood == "learned":
            return self.log_std.exp()
        if self.kind.likelihood == "optimal":
            return self.optimal.sqrt()
        return torch.ones(())

    def log_mass(self, z: Tensor, x: Tensor) -> Tensor:
        """log P(x|z) of the 17 levels, `[...]`, for z `[..., L]` and x that broadcasts."""
        params = self.parameters_of(z)
        if self.kind.likelihood == "levels":
            return -vf.nll(params, x, Levels(), reduction="none").sum(-1)
        if isinstance(params, Tensor):
            return gaussian_log_mass(x, params, self.std()).sum(-1)
        return gaussian_log_mass(x, params[0], torch.exp(0.5 * params[1])).sum(-1)

    def log_weights(self, x: Tensor, num_samples: int, seed: int | None = None) -> Tensor:
        """log P(x|z) + log p(z) - log q(z|x) at samples of q, `[K, B]`."""
        mu, scale = self.posterior(x)
        if self.kind.posterior == "diagonal":
            z, kl = vf.sample_kl(
                mu, scale, num_samples=num_samples, estimator="monte_carlo", seed=seed
            )
            return self.log_mass(z, x) - kl
        z, _ = vf.tril_sample_kl(mu, scale, num_samples=num_samples, seed=seed)
        noise = torch.linalg.solve_triangular(scale, (z - mu).unsqueeze(-1), upper=False)[..., 0]
        log_det = torch.log(torch.diagonal(scale, dim1=-2, dim2=-1)).sum(-1)
        kl = 0.5 * (z.square() - noise.square()).sum(-1) - log_det
        log_w: Tensor = self.log_mass(z, x) - kl
        return log_w


def _first(params: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return params if isinstance(params, Tensor) else params[0]
