"""Objectives that hold the aggregate posterior to the prior by an MMD: InfoVAE and WAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...ops.mmd import mmd
from .. import InputError
from ..models import Model
from ._base import Loss, Objective, Step, at_least, mean, register

# The prior's points are to be no function of the posterior's noise.
_OTHER = 0x2545F4914F6CDD1D >> 1


def penalty(model: Model, z: Tensor, kernel: Literal["imq", "rbf"], seed: int | None) -> Tensor:
    """MMD^2 of codes z `[B, latent]` and as many from the prior; 0 of fewer than two."""
    if len(z) < 2:
        return z.sum() * 0
    other = None if seed is None else seed ^ _OTHER
    return mmd(z, model.prior(len(z), seed=other), kernel=kernel)


def _check_kernel(kernel: str) -> None:
    if kernel not in ("imq", "rbf"):
        raise InputError(f"kernel must be imq or rbf, got {kernel!r}")


@register("infovae")
@dataclass(frozen=True)
class InfoVAE(Objective):
    """nll + (1 - alpha) KL + (alpha + weight - 1) MMD(q(z), p(z)).

    Args:
        alpha: 0 is the ELBO's KL whole, 1 none of it.
        weight: lambda; the MMD's weight rises during the warm-up.
        kernel: `"imq"` or `"rbf"`, as in `vf.mmd`.

    Source: Zhao, Song and Ermon 2019, "InfoVAE", equation 6.
    """

    alpha: float = 0.5
    weight: float = 100.0
    kernel: Literal["imq", "rbf"] = "imq"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha must be in [0, 1], got {self.alpha}")
        at_least("weight", self.weight, 1 - self.alpha)
        _check_kernel(self.kernel)

    def __call__(self, model: Model, x: Tensor, step: Step) -> Loss:
        z, kl = model.draw(x, seed=step.seed, offset=step.offset)
        data = mean(model.nll(z, x, seed=step.seed, offset=step.offset))
        apart = penalty(model, z, self.kernel, step.seed)
        weight = step.warm * (self.alpha + self.weight - 1)
        loss = data + (1 - self.alpha) * mean(kl) + weight * apart
        return Loss(loss, data.detach(), mean(kl).detach())


@register("wae")
@dataclass(frozen=True)
class WAE(Objective):
    """nll at z = mu + weight MMD(q(z), p(z)): the Wasserstein autoencoder with a deterministic
    encoder; the MMD stands in the KL's place in what is logged.

    Args:
        weight: lambda; rises during the warm-up.
        kernel: `"imq"` or `"rbf"`, as in `vf.mmd`.

    Source: Tolstikhin et al. 2018, "Wasserstein Auto-Encoders", algorithm 2.
    """

    weight: float = 100.0
    kernel: Literal["imq", "rbf"] = "imq"

    def __post_init__(self) -> None:
        at_least("weight", self.weight, 0)
        _check_kernel(self.kernel)

    def __call__(self, model: Model, x: Tensor, step: Step) -> Loss:
        z, _ = model.encode(x)
        data = mean(model.nll(z, x, seed=step.seed, offset=step.offset))
        apart = penalty(model, z, self.kernel, step.seed)
        loss = data + step.warm * self.weight * apart
        return Loss(loss, data.detach(), apart.detach())

    def held_out(self, model: Model, x: Tensor, step: Step, *, samples: int = 1) -> Loss:
        """The loss itself: the posterior's variance is not trained, so there is no ELBO."""
        return self(model, x, step._replace(warm=1.0))
