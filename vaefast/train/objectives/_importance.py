"""Bounds of many samples: IWAE and its relatives, and DReG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...ops.gaussian_kl import gaussian_kl
from ...ops.importance_loss import importance_loss
from ...ops.log_weights import log_weights
from ...ops.rsample import rsample
from .. import InputError
from ..models import Model
from ._base import Loss, Objective, Step, at_least, mean, register


@register("iwae")
@dataclass(frozen=True)
class IWAE(Objective):
    """-log mean_k w_k of K samples, or another bound of `vf.importance_loss`.

    Args:
        samples: K.
        bound: `"iwae"`, `"ciwae"` or `"renyi"`.
        beta: of ciwae.
        alpha: of renyi.

    Source: Burda, Grosse and Salakhutdinov 2016; docs/bounds.md for the others.
    """

    samples: int = 8
    bound: Literal["iwae", "ciwae", "renyi"] = "iwae"
    beta: float = 0.5
    alpha: float = 0.5

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 1)
        if self.bound not in ("iwae", "ciwae", "renyi"):
            raise InputError(f"bound must be iwae, ciwae or renyi, got {self.bound!r}")
        if not 0 <= self.beta <= 1:
            raise InputError(f"beta must be in [0, 1], got {self.beta}")
        at_least("alpha", self.alpha, 0)

    def __call__(self, model: Model, x: Tensor, step: Step) -> Loss:
        z, kl = model.draw(
            x,
            num_samples=self.samples,
            estimator="monte_carlo",
            seed=step.seed,
            offset=step.offset,
        )
        data = model.nll(z, x, seed=step.seed, offset=step.offset)
        loss = importance_loss(-data - kl, bound=self.bound, beta=self.beta, alpha=self.alpha)
        return Loss(loss, mean(data).detach(), mean(kl).detach())


@register("dreg")
@dataclass(frozen=True)
class DReG(Objective):
    """IWAE's bound with the doubly reparameterised gradient, whose signal does not fall with K.

    Args:
        samples: K.

    Source: Tucker et al. 2019, "Doubly Reparameterized Gradient Estimators for Monte Carlo
    Objectives".
    """

    samples: int = 8

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 1)

    def check(self, model: Model) -> None:
        """Takes a diagonal posterior, and a prior that does not reach the encoder."""
        if model.name != "vae":
            raise InputError(f"objective dreg needs model vae, got {model.name}")

    def __call__(self, model: Model, x: Tensor, step: Step) -> Loss:
        mu, logvar = model.encode(x)
        z = rsample(
            mu,
            logvar,
            num_samples=self.samples,
            seed=step.seed,
            offset=step.offset * model.latent,
        )
        log_w = log_weights(
            model.decode(z),
            model.head.target(x),
            z,
            mu,
            logvar,
            likelihood=model.likelihood(),
            stop_posterior=True,
            seed=step.seed,
            offset=step.offset * math.prod(x.shape[1:]),
        )
        loss = importance_loss(log_w, bound="dreg", z=z)
        data = -mean(log_w.detach())
        with torch.no_grad():
            kl = gaussian_kl(mu, logvar)
        return Loss(loss, data - kl, kl)
