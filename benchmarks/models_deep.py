"""As models.py, of pictures and sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaefast as vf

from .bench_nll import gaussian_fixed
from .bench_row_nll import mixture
from .models import Model, Replaced, drawn, likelihood, one, perceptron, sample_kl


def residual(width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)),
        *(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)),
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = residual(width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.inside(h)


def picture_scale(bits: Tensor) -> Tensor:
    return bits / 127.5 - 1


def prior_sample_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor
) -> tuple[Tensor, Tensor]:
    kl = 0.5 * (
        prior_logvar - logvar + (logvar.exp() + (mu - prior_mu) ** 2) * torch.exp(-prior_logvar) - 1
    )
    return drawn(mu, logvar), kl.sum((1, 2, 3))


class VDVAE(Model):
    """Two levels of a very deep VAE (Child 2021) with a mixture of 10 discretised logistics."""

    replaced: ClassVar[Mapping[str, Replaced]] = {
        "sample": Replaced(
            prior_sample_kl,
            lambda m, v, pm, pv: vf.sample_kl(m, v, prior_mu=pm, prior_scale=pv),
            noisy=True,
        ),
        "pixels": Replaced(one(mixture), likelihood(vf.DiscretizedLogisticMixture())),
    }

    def __init__(self, batch: int, size: int, width: int, latent: int) -> None:
        super().__init__()
        self.shape, self.width, self.latent = (batch, 3, size, size), width, latent
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.up = nn.ModuleList([Residual(width) for _ in range(2)])
        self.posterior = nn.ModuleList([nn.Conv2d(2 * width, 2 * latent, 1) for _ in range(2)])
        self.prior = nn.ModuleList([nn.Conv2d(width, 2 * latent, 1) for _ in range(2)])
        self.into = nn.ModuleList([nn.Conv2d(latent, width, 1) for _ in range(2)])
        self.down = nn.ModuleList([Residual(width) for _ in range(2)])
        self.last = nn.Conv2d(width, 100, 1)

    def data(self, device: torch.device) -> tuple[Tensor, ...]:
        return (picture_scale(torch.randint(0, 256, self.shape, device=device).float()),)

    def forward(self, x: Tensor) -> Tensor:
        high = F.avg_pool2d(self.up[0](self.first(x)), 2)
        low = F.avg_pool2d(self.up[1](high), 2)
        h, total = torch.zeros_like(low), x.new_zeros(())
        for level, skip in enumerate((low, high)):
            q = self.posterior[level](torch.cat([h, skip], 1)).chunk(2, 1)
            p = self.prior[level](h).chunk(2, 1)
            z, kl = self.ops["sample"](*q, *p)
            total = total + kl.mean()
            h = F.interpolate(self.down[level](h + self.into[level](z)), scale_factor=2)
        return self.ops["pixels"](self.last(h), x) + total


class Dreamer(Model):
    """A recurrent state-space model (Hafner et al. 2021) with Gaussian states, unrolled."""

    replaced: ClassVar[Mapping[str, Replaced]] = {
        "sample": Replaced(
            lambda m, s: m + (F.softplus(s) + 0.1) * torch.randn_like(m),
            lambda m, s: vf.rsample(m, s, param="softplus", min_std=0.1),
            noisy=True,
        ),
        "kl": Replaced(
            lambda *t: _balanced_kl(*t),
            lambda m, s, pm, ps: vf.gaussian_kl(
                *(m, s, pm, ps),
                param="softplus",
                min_std=0.1,
                balance=0.8,
                free_bits=1.0,
                free_bits_per="total",
            ),
        ),
        "nll": Replaced(one(gaussian_fixed), likelihood(vf.Gaussian(std=1.0))),
    }

    def __init__(self, batch: int, steps: int, data: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.shape, self.sizes = (steps, batch, data), (hidden, latent)
        self.embed = perceptron(data, hidden, hidden)
        self.cell = nn.GRUCell(latent, hidden)
        self.prior = perceptron(hidden, hidden, 2 * latent)
        self.posterior = perceptron(2 * hidden, hidden, 2 * latent)
        self.decoder = perceptron(hidden + latent, hidden, data)

    def data(self, device: torch.device) -> tuple[Tensor, ...]:
        return (torch.randn(self.shape, device=device),)

    def forward(self, x: Tensor) -> Tensor:
        hidden, latent = self.sizes
        h, z = x.new_zeros(x.shape[1], hidden), x.new_zeros(x.shape[1], latent)
        states, posteriors, priors = [], [], []
        for embedded in self.embed(x):
            h = self.cell(z, h)
            prior, posterior = self.prior(h), self.posterior(torch.cat([h, embedded], 1))
            z = self.ops["sample"](*posterior.chunk(2, 1))
            states.append(torch.cat([h, z], 1))
            priors.append(prior)
            posteriors.append(posterior)
        q, p = torch.cat(posteriors).chunk(2, 1), torch.cat(priors).chunk(2, 1)
        nll = self.ops["nll"](self.decoder(torch.cat(states)), x.flatten(0, 1))
        return nll + self.ops["kl"](*q, *p)


def _balanced_kl(mu: Tensor, scale: Tensor, prior_mu: Tensor, prior_scale: Tensor) -> Tensor:
    """DreamerV2's two terms with their free nats (alpha 0.8, of the mean)."""

    def kl(m: Tensor, s: Tensor, pm: Tensor, ps: Tensor) -> Tensor:
        std, prior = F.softplus(s) + 0.1, F.softplus(ps) + 0.1
        density = torch.log(prior / std) + (std**2 + (m - pm) ** 2) / (2 * prior**2) - 0.5
        return density.sum(1).mean().clamp(min=1.0)

    stop = Tensor.detach
    to_prior = kl(stop(mu), stop(scale), prior_mu, prior_scale)
    return 0.8 * to_prior + 0.2 * kl(mu, scale, stop(prior_mu), stop(prior_scale))


class AutoencoderKL(Model):
    """A convolutional autoencoder of pictures with a few latent channels, as latent diffusion has
    it (Rombach et al. 2022), without its discriminator."""

    replaced: ClassVar[Mapping[str, Replaced]] = {
        "sample": Replaced(
            lambda m, v: sample_kl(m, v.clamp(-30.0, 20.0)),
            lambda m, v: vf.sample_kl(m, v, clamp=(-30.0, 20.0)),
            noisy=True,
        ),
        "nll": Replaced(one(gaussian_fixed), likelihood(vf.Gaussian(std=1.0))),
    }

    def __init__(self, batch: int, size: int, width: int, latent: int) -> None:
        super().__init__()
        self.shape = (batch, 3, size, size)
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1), Residual(width)),
            *(nn.Conv2d(width, width, 3, 2, 1), Residual(width)),
            *(nn.Conv2d(width, width, 3, 2, 1), Residual(width)),
            nn.Conv2d(width, 2 * latent, 1),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(latent, width, 1), Residual(width)),
            *(nn.ConvTranspose2d(width, width, 4, 2, 1), Residual(width)),
            *(nn.ConvTranspose2d(width, width, 4, 2, 1), Residual(width)),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    def data(self, device: torch.device) -> tuple[Tensor, ...]:
        return (picture_scale(torch.randint(0, 256, self.shape, device=device).float()),)

    def forward(self, x: Tensor) -> Tensor:
        z, kl = self.ops["sample"](*self.encoder(x).chunk(2, 1))
        return self.ops["nll"](self.decoder(z), x) + 1e-6 * kl.mean()
