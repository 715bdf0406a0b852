"""The VAE: a diagonal Gaussian posterior, and N(0, I) for a prior."""

from __future__ import annotations

from torch import Tensor

from ...ops.gaussian_kl import gaussian_kl
from ...ops.sample_kl import sample_kl
from ._base import Draw, Estimator, Model, register


@register("vae")
class VAE(Model):
    """q(z|x) = N(mu(x), exp(logvar(x))), p(z) = N(0, I), and p(x|z) of the named likelihood.

    Arguments as in `Model`.

    Example:
        >>> import torch
        >>> model = VAE([1, 8, 8], latent=4)
        >>> mu, logvar = model.encode(torch.rand(3, 1, 8, 8))
        >>> mu.shape, model.decode(mu).shape
        (torch.Size([3, 4]), torch.Size([3, 1, 8, 8]))

    Source: Kingma and Welling 2014.
    """

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logvar, `[B, latent]` each, of x `[B, *shape]` (uint8: pixels up to 255)."""
        mu, logvar = self.encoder(self.head.show(x)).chunk(2, dim=1)
        return mu, logvar

    def kl_terms(self, x: Tensor, *, seed: int | None = None) -> Tensor | None:
        """KL(q(z_d|x) || N(0, 1)); None of a subclass that has another prior or posterior."""
        if type(self).draw is not VAE.draw or not self.has_standard_prior():
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
        mu, logvar = self.encode(x)
        z, kl = sample_kl(
            mu,
            logvar,
            num_samples=num_samples,
            estimator=estimator,
            seed=seed,
            offset=offset * self.latent,
        )
        return Draw(z, kl)
