"""What is trained: a model with its objective as one module, and the means of an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import models, objectives
from .objectives import Loss, Step

PARTS = ("loss", "nll", "kl")
# Steps whose values wait on their device before they are added up: asking for each would wait for
# a GPU at every step.
_KEPT = 256


class Batch:
    """Samples x `[B, *shape]`: the rows from `start` on of the `whole` that all processes share.

    Not a tuple, whose tensors Lightning would cast: what a likelihood is of must not be rounded to
    bfloat16.
    """

    __slots__ = ("start", "whole", "x")

    def __init__(self, x: Tensor, start: int = 0, whole: int | None = None) -> None:
        self.x, self.start = x, start
        self.whole = len(x) if whole is None else whole


class Trained(nn.Module):
    """A model and its objective; the forward pass gives the loss of a batch.

    Args:
        model: the arguments of `vaefast.train.models.build`.
        objective: those of `vaefast.train.objectives.build`; None: the ELBO.
    """

    def __init__(
        self, model: Mapping[str, Any], objective: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.vae = models.build(**model)
        self.objective = objectives.build(**(objective or {}))
        self.objective.check(self.vae)

    def forward(self, batch: Batch, step: Step, held_out: bool = False) -> Loss:
        """The objective's loss on this process's part of a batch, or its held-out one."""
        if held_out:
            return self.objective.held_out(self.vae, batch.x, step)
        return self.objective(self.vae, batch.x, step)


class Means:
    """Sums of the losses of batches, weighted by their samples, in float64.

    Args:
        finite: leave out batches of which a value is not finite, as the steps they make are.
    """

    def __init__(self, *, finite: bool) -> None:
        self._finite = finite
        # The three parts, and the samples.
        self._sums = [0.0] * (len(PARTS) + 1)
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._counts: list[int] = []

    def add(self, out: Loss, count: int) -> None:
        """Adds a batch of `count` samples."""
        self._kept.append((out.loss.detach(), out.nll, out.kl))
        self._counts.append(count)
        if len(self._counts) >= _KEPT:
            self._fold()

    def _fold(self) -> None:
        if not self._kept:
            return
        flat = [value.double() for values in self._kept for value in values]
        rows = torch.stack(flat).view(-1, len(PARTS)).tolist()
        # One after the other, so that a resumed epoch has the same sums.
        for values, count in zip(rows, self._counts, strict=True):
            if not self._finite or all(map(math.isfinite, values)):
                for place, value in enumerate((*values, 1.0)):
                    self._sums[place] += value * count
        self._kept.clear()
        self._counts.clear()

    @property
    def sums(self) -> list[float]:
        """The weighted sums of the parts, and the samples."""
        self._fold()
        return list(self._sums)

    @sums.setter
    def sums(self, values: Sequence[float]) -> None:
        self._kept.clear()
        self._counts.clear()
        self._sums = [float(value) for value in values]

    def clear(self) -> None:
        """Begins anew."""
        self.sums = [0.0] * len(self._sums)


def means(kind: str, sums: Sequence[float]) -> dict[str, float]:
    """The columns `kind_loss`, `kind_nll` and `kind_kl` of a `Means`' sums; NaN of no samples."""
    *parts, count = sums
    return {
        f"{kind}_{name}": value / count if count else math.nan
        for name, value in zip(PARTS, parts, strict=True)
    }


def gradient_norm(gradients: Sequence[Tensor]) -> tuple[Tensor, bool]:
    """The norm of all gradients together, and whether each of them is finite."""
    total = torch.nn.utils.get_total_norm(gradients)
    # The norm overflows before its parts do.
    finite = math.isfinite(total.item()) or all(
        bool(torch.isfinite(gradient).all()) for gradient in gradients
    )
    return total, finite
