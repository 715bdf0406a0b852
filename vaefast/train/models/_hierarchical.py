"""Two layers of latent variables, the upper one the lower one's learned prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import random
from ...ops.gaussian_kl import gaussian_kl
from ...ops.rsample import rsample
from ...ops.sample_kl import sample_kl
from .. import InputError
from ._base import Draw, Estimator, Model, register


@register("hierarchical")
class HierarchicalVAE(Model):
    """p(z2) = N(0, I), p(z1|z2) = N(m(z2), s(z2)^2), p(x|z1, z2); q(z2|x), q(z1|x, z2).

    A code is `[z1, z2]`, `latent` + `upper` numbers, which `latent` then counts together.
    KL = KL(q(z2|x) || p(z2)) + KL(q(z1|x, z2) || p(z1|z2)), the second at the sample of z2.

    Args:
        latent: dimensions of z1.
        upper: dimensions of z2.
        balance: of the learned prior's KL, the share of the gradient that goes to the prior, in
            [0, 1], the rest going to the posterior; None: each gets its whole gradient.

    The others as in `Model`.

    Source: Sønderby et al. 2016, "Ladder Variational Autoencoders"; Hafner et al. 2021, "Mastering
    Atari with Discrete World Models", section 2.2, for the balance.
    """

    diagonal = False
    closed_kl = False

    def __init__(
        self,
        shape: Sequence[int],
        *,
        latent: int = 16,
        upper: int = 8,
        balance: float | None = None,
        **common: Any,
    ) -> None:
        if upper < 1:
            raise InputError(f"upper must be at least 1, got {upper}")
        if balance is not None and not 0 <= balance <= 1:
            raise InputError(f"balance must be in [0, 1], got {balance}")
        self.lower, self.upper = latent, upper
        hidden = common.get("width") or 256
        self._hidden = hidden
        # Before the networks: their sizes are asked for in Model.__init__.
        super().__init__(shape, latent=latent, **common)
        self.latent = latent + upper
        self.balance = balance
        self.top = nn.Linear(hidden, 2 * upper)
        self.bottom = _small(hidden + upper, hidden, 2 * latent)
        self.between = _small(upper, hidden, 2 * latent)

    def _sizes(self) -> tuple[int, int]:
        return self._hidden, self.lower + self.upper

    def _upper(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = torch.relu(self.encoder(self.head.show(x)))
        mu, logvar = self.top(features).chunk(2, dim=1)
        return features, mu, logvar

    def _lower(self, features: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mu, logvar of q(z1|x, z2) and of p(z1|z2), in the lead of z2."""
        wide = features.expand(*z2.shape[:-1], -1)
        prior_mu, prior_logvar = self.between(z2).chunk(2, dim=-1)
        mu, logvar = self.bottom(torch.cat([wide, z2], -1)).chunk(2, dim=-1)
        # What the encoder adds to the prior: where it adds nothing, the KL is 0.
        return prior_mu + mu, prior_logvar + logvar, prior_mu, prior_logvar

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The means and log-variances of [z1, z2], z1's at the mean of z2."""
        features, mu2, logvar2 = self._upper(x)
        mu1, logvar1, _, _ = self._lower(features, mu2)
        return torch.cat([mu1, mu2], -1), torch.cat([logvar1, logvar2], -1)

    def kl_terms(self, x: Tensor, *, seed: int | None = None) -> Tensor:
        """KL(q(z1_d|x, z2) || p(z1_d|z2)) at the sample of z2 that `draw` takes, and
        KL(q(z2_d|x) || N(0, 1))."""
        features, mu2, logvar2 = self._upper(x)
        z2 = rsample(mu2, logvar2, seed=random.make_state(mu2, len(mu2), seed))
        mu, logvar, prior_mu, prior_logvar = self._lower(features, z2)
        lower = gaussian_kl(
            mu, logvar, prior_mu=prior_mu, prior_scale=prior_logvar, reduction="none"
        )
        return torch.cat([lower, gaussian_kl(mu2, logvar2, reduction="none")], 1)

    def draw(
        self,
        x: Tensor,
        *,
        num_samples: int | None = None,
        estimator: Estimator = "closed",
        seed: int | None = None,
        offset: int = 0,
    ) -> Draw:
        """As `Model.draw`; the KL of z1 is in closed form given z2."""
        features, mu2, logvar2 = self._upper(x)
        state = random.make_state(mu2, len(mu2), seed)
        z2, kl2 = sample_kl(
            mu2,
            logvar2,
            num_samples=num_samples,
            estimator=estimator,
            seed=state,
            offset=offset * self.upper,
        )
        mu, logvar, prior_mu, prior_logvar = self._lower(features, z2)
        flat = [t.reshape(-1, self.lower) for t in (mu, logvar, prior_mu, prior_logvar)]
        # The seed's next stream: z2's own would tie the two layers' noise.
        noise = self._noise(state, z2.shape[:-1], offset, mu.dtype)
        z1, kl1 = sample_kl(
            *flat[:2],
            prior_mu=flat[2],
            prior_scale=flat[3],
            # An estimate has no share of its own for the prior.
            balance=self.balance if estimator == "closed" else None,
            estimator=estimator,
            noise=noise.view(-1, self.lower),
        )
        lead = z2.shape[:-1]
        z1, kl1 = z1.view(*lead, self.lower), kl1.view(lead)
        # One z2 has one KL, several have one together.
        return Draw(torch.cat([z1, z2], -1), kl1 + kl2)

    def _noise(self, state: Tensor, lead: torch.Size, offset: int, dtype: torch.dtype) -> Tensor:
        other = torch.stack([state[..., 0] ^ 0x5DEECE66D, state[..., 1]], -1)
        batch = lead[-1]
        zeros = torch.zeros(batch, self.lower, dtype=dtype, device=state.device)
        return rsample(
            zeros,
            zeros,
            num_samples=lead[0] if len(lead) > 1 else None,
            seed=other,
            offset=offset * self.lower,
        )

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z1|z2) + log p(z2) of z `[..., latent]`."""
        z1, z2 = z.split([self.lower, self.upper], -1)
        mu, logvar = self.between(z2).chunk(2, dim=-1)
        unit = (z1 - mu) * torch.exp(-0.5 * logvar)
        given: Tensor = super().log_prior(unit) - 0.5 * logvar.sum(-1)
        return given + super().log_prior(z2)

    def from_units(self, units: Tensor) -> Tensor:
        """As `Model.from_units`: z2 as it is, z1 by its centre and deviations given z2."""
        z1, z2 = units.split([self.lower, self.upper], -1)
        mu, logvar = self.between(z2).chunk(2, dim=-1)
        return torch.cat([mu + torch.exp(0.5 * logvar) * z1, z2], -1)


def _small(inputs: int, hidden: int, outputs: int) -> nn.Module:
    last = nn.Linear(hidden, outputs)
    # Begins near N(0, 1): the prior, and what the posterior adds to it.
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), last)
