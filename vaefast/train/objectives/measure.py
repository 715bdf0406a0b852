"""The ELBO of a training step and on held-out data, as functions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..models import Model
from ._base import Loss, Objective, Step
from ._elbo import ELBO, Autoencoder


def step_loss(model: Model, x: Tensor, *, beta: float = 1.0, seed: int | None = None) -> Loss:
    """-ELBO of x `[B, *shape]` at one sample of the posterior, by the fused operators."""
    return ELBO(beta)(model, x, Step(seed))


def autoencoder_loss(model: Model, x: Tensor) -> Loss:
    """Half the squared error per image at z = mu: no noise, no prior; kl is 0."""
    return Autoencoder()(model, x, Step())


@torch.no_grad()
def held_out_elbo(
    model: Model,
    x: Tensor | Iterable[Tensor],
    *,
    samples: int = 16,
    seed: int = 0,
    batch_size: int = 256,
    autoencoder: bool = False,
    objective: Objective | None = None,
) -> Loss:
    """The mean over x of -ELBO at beta = 1 (`loss`), its nll and its KL, in nats per sample.

    The same seed gives every model the same noise, so two of them compare.

    Args:
        x: the data, or batches of them.
        objective: its own held-out loss, where it has one.
    """
    objective = Autoencoder() if autoencoder else objective or ELBO()
    totals, count = torch.zeros(3, dtype=torch.float64), 0
    for index, batch in enumerate(x.split(batch_size) if isinstance(x, Tensor) else x):
        part = objective.held_out(model, batch, Step(seed * 2**32 + index), samples=samples)
        totals += len(batch) * torch.stack([t.double().cpu() for t in part])
        count += len(batch)
    return Loss(*(totals / max(1, count)))
