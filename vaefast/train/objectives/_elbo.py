"""The ELBO: VAE, beta-VAE, capacity, free bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...ops.elbo_loss import elbo_loss
from ...ops.sample_kl import sample_kl
from .. import InputError
from ..models import VAE, Model
from ._base import Loss, Objective, Step, at_least, register


@register("elbo")
@dataclass(frozen=True)
class ELBO(Objective):
    """nll + beta KL, or nll + beta |KL - capacity|, or with free bits.

    Args:
        beta: weight of the KL; rises during the warm-up, unless there is a capacity.
        capacity: C in nats, which rises during the warm-up.
        free_bits: nats below which the KL costs nothing, as in `vf.gaussian_kl`.
        free_bits_per: `"dim"`, `"sample"` or `"total"`.

    Source: Kingma and Welling 2014; Higgins et al. 2017 (beta); Burgess et al. 2018 (capacity);
    Kingma et al. 2016, appendix C.8 (free bits).
    """

    beta: float = 1.0
    capacity: float | None = None
    free_bits: float = 0.0
    free_bits_per: Literal["dim", "sample", "total"] = "dim"

    def __post_init__(self) -> None:
        at_least("beta", self.beta, 0)
        at_least("free_bits", self.free_bits, 0)
        if self.capacity is not None:
            at_least("capacity", self.capacity, 0)
            if self.free_bits:
                raise InputError("an objective takes capacity or free_bits, not both")
        if self.free_bits_per not in ("dim", "sample", "total"):
            raise InputError(
                f"free_bits_per must be dim, sample or total, got {self.free_bits_per!r}"
            )

    def check(self, model: Model) -> None:
        """Free bits per dimension need a posterior whose KL has dimensions."""
        if self.free_bits and self.free_bits_per == "dim" and type(model).draw is not VAE.draw:
            raise InputError(
                f"free_bits_per dim needs model vae, got {model.name}: take sample or total"
            )

    def __call__(self, model: Model, x: Tensor, step: Step) -> Loss:
        beta, capacity = self.beta, self.capacity
        if capacity is None:
            beta *= step.warm
        else:
            capacity *= step.warm
        head, offset = model.head, step.offset
        kl: Tensor | None = None
        mu: Tensor | None = None
        logvar: Tensor | None = None
        if self.free_bits and self.free_bits_per == "dim":
            mu, logvar = model.encode(x)
            z, _ = sample_kl(mu, logvar, seed=step.seed, offset=offset * model.latent)
        else:
            z, kl = model.draw(x, seed=step.seed, offset=offset)
        found = elbo_loss(
            model.decode(z),
            head.target(x),
            mu,
            logvar,
            kl=kl,
            likelihood=model.likelihood(),
            beta=beta,
            capacity=capacity,
            free_bits=self.free_bits,
            free_bits_per=self.free_bits_per,
            seed=step.seed,
            offset=offset * math.prod(x.shape[1:]),
        )
        return Loss(*found)


@register("autoencoder")
@dataclass(frozen=True)
class Autoencoder(Objective):
    """Half the squared error at z = mu: no noise, no prior (L2).

    Source: Hinton and Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural
    Networks".
    """

    def __call__(self, model: Model, x: Tensor, step: Step) -> Loss:
        apart = model.mean(model.encode(x)[0]) - model.head.values(x)
        error = 0.5 * apart.square().sum() / max(1, len(x))
        return Loss(error, error.detach(), torch.zeros_like(error.detach()))

    def held_out(self, model: Model, x: Tensor, step: Step, *, samples: int = 1) -> Loss:
        """The same, on held-out x."""
        return self(model, x, step)
