"""beta-TCVAE: the KL in three parts, each with its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...ops.sample_kl import sample_kl
from ...ops.tc_terms import tc_terms
from .. import InputError
from ..models import VAE, Model
from ._base import Loss, Objective, Step, at_least, mean, register


@register("beta_tcvae")
@dataclass(frozen=True)
class BetaTCVAE(Objective):
    """nll + alpha MI + beta TC + gamma sum_d KL_d, the last three as `vf.tc_terms` gives them.

    Args:
        alpha, beta, gamma: the weights; all rise during the warm-up.
        method: `"mss"` or `"mws"`, as in `vf.tc_terms`.

    Source: Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", equation 4.
    """

    alpha: float = 1.0
    beta: float = 6.0
    gamma: float = 1.0
    method: Literal["mss", "mws"] = "mss"

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            at_least(name, getattr(self, name), 0)
        if self.method not in ("mss", "mws"):
            raise InputError(f"method must be mss or mws, got {self.method!r}")

    def check(self, model: Model) -> None:
        """Takes a diagonal posterior and N(0, I)."""
        if type(model).draw is not VAE.draw:
            raise InputError(f"objective beta_tcvae needs model vae, got {model.name}")

    def __call__(self, model: Model, x: Tensor, step: Step) -> Loss:
        mu, logvar = model.encode(x)
        z, kl = sample_kl(mu, logvar, seed=step.seed, offset=step.offset * model.latent)
        data = mean(model.nll(z, x, seed=step.seed, offset=step.offset))
        if len(x) < 2 and not step.gather:
            # A batch of one has no aggregate posterior.
            penalty, kl = mean(kl), mean(kl)
            return Loss(data + step.warm * penalty, data.detach(), kl.detach())
        terms = tc_terms(
            z,
            mu,
            logvar,
            dataset_size=max(step.dataset_size, len(x)),
            method=self.method,
            gather=step.gather,
        )
        mi, tc, dim_kl = (mean(term) for term in terms)
        penalty = self.alpha * mi + self.beta * tc + self.gamma * dim_kl
        return Loss(data + step.warm * penalty, data.detach(), mean(kl).detach())
