"""A VAE whose posterior has a covariance matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.gaussian_kl import gaussian_kl
from ...ops.tril_sample_kl import tril_sample_kl
from ._base import Draw, Estimator, Model, register


@register("full_covariance")
class FullCovarianceVAE(Model):
    """q(z|x) = N(mu(x), L(x) L(x)^T) with L lower triangular, and p(z) = N(0, I).

    Arguments as in `Model`.

    Source: Kingma and Welling 2019, section 2.5.1.
    """

    diagonal = False

    def _sizes(self) -> tuple[int, int]:
        return 2 * self.latent + self.latent * (self.latent - 1) // 2, self.latent

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu `[B, latent]` and L `[B, latent, latent]`."""
        out = self.encoder(self.head.show(x))
        mu, log_diagonal, below = out.split(
            [self.latent, self.latent, out.shape[1] - 2 * self.latent], 1
        )
        tril = torch.diag_embed(torch.exp(0.5 * log_diagonal))
        rows, columns = torch.tril_indices(self.latent, self.latent, -1, device=out.device)
        # Out of place: autograd keeps the diagonal's exponential.
        return mu, tril.index_put(
            (torch.arange(len(out), device=out.device)[:, None], rows, columns), below
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu, and the logarithm of the marginal variances."""
        mu, tril = self.posterior(x)
        return mu, tril.square().sum(-1).log()

    def kl_terms(self, x: Tensor, *, seed: int | None = None) -> Tensor | None:
        """KL(q(z_d|x) || N(0, 1)) of each dimension's marginal: what of the KL is not in their
        correlations; None of a subclass that has another prior."""
        if not self.has_standard_prior():
            return None
        return gaussian_kl(*self.encode(x), reduction="none")

    def draw(
        self,
        x: Tensor,
        *,
        num_samples: int | None = None,
        estimator: Estimator = "closed",
        seed: int | None = None,
        offset: int = 0,
    ) -> Draw:
        """As `Model.draw`; the KL is in closed form."""
        mu, tril = self.posterior(x)
        z, kl = tril_sample_kl(
            mu, tril, num_samples=num_samples, seed=seed, offset=offset * self.latent
        )
        if estimator == "closed":
            return Draw(z, kl)
        # log q - log p = (|z|^2 - |eps|^2) / 2 - sum log L_ii, eps = L^-1 (z - mu).
        apart = (z - mu).unsqueeze(-1)
        eps = torch.linalg.solve_triangular(tril, apart, upper=False).squeeze(-1)
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return Draw(z, 0.5 * (z.square() - eps.square()).sum(-1) - log_det)
