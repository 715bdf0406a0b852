"""The settings of an operator that are no tensors, as one value that travels between layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

# Which of a state's independent streams: a Philox counter's last word.
POSTERIOR, BINARIZE, LIKELIHOOD = 0, 1, 2


class Transform(NamedTuple):
    """What the scale parameter is: `param`, `min_std` (softplus), and its clamp's bounds."""

    param: str
    min_std: float
    clamp: tuple[float, ...]


def z_shape(shape: Sequence[int], num_samples: int) -> tuple[int, ...]:
    """Of z for mu of `shape`: several samples are a leading dimension."""
    return (num_samples, *shape) if num_samples > 0 else tuple(shape)


class Posterior(NamedTuple):
    """Settings of `sample_kl`.

    `num_samples`: -1 no sample, 0 one of mu's shape, K a leading dimension of K.
    `reduce`: "" no KL, "elem", "sample", "dim" or "sum"; its result is multiplied by `factor`.
    """

    transform: Transform
    num_samples: int
    temperature: float
    offset: int
    reduce: str
    factor: float

    def kl_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the KL for a posterior `[B, *latent]`."""
        whole = tuple(shape)
        return {"elem": whole, "sample": whole[:1], "dim": whole[1:]}.get(self.reduce, ())


class NllOptions(NamedTuple):
    """Settings of `nll`.

    `form` and `numbers` are the likelihood's; `scalar` is the index of a parameter that is one
    number, or -1. `lead` leading dimensions of the parameters index samples: 1, or 2 with a
    leading K. `uint8_scale` divides a uint8 target. `reduce`: "elem", "sample" or "sum"; the
    loss is multiplied by `factor`, the gradients by `grad_factor`. A state means that the
    target is an intensity to draw a binary target from, at `offset` elements into the stream.
    """

    form: str
    numbers: tuple[float, ...]
    scalar: int
    lead: int
    uint8_scale: float
    offset: int
    reduce: str
    factor: float
    grad_factor: float

    def loss_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the loss for parameters of `shape`."""
        whole = tuple(shape)
        return {"elem": whole, "sample": whole[: self.lead]}.get(self.reduce, ())


class Weighing(NamedTuple):
    """Settings of `tc_terms`: the weights of the posteriors in a point's estimate of q(z).

    `log_weight` is what all have in common. Point i came from posterior `first + i`, whose
    weight is `own` times that; that of the posterior after it is `stratum` times.
    """

    log_weight: float
    first: int
    own: float
    stratum: float


class MmdOptions(NamedTuple):
    """Settings of `mmd`: the sum over `scales` of exp(-d^2 / scale) or scale / (scale + d^2)."""

    rbf: bool
    scales: tuple[float, ...]
    unbiased: bool

    def factors(self, n: int, m: int) -> tuple[float, float, float, float]:
        """Of the sums over pairs of x, of y, and of both, none of a point with itself; and what is
        added to them: k(x, x) = 1 at each scale."""
        if self.unbiased:
            return 1 / (n * (n - 1)), 1 / (m * (m - 1)), -2 / (n * m), 0.0
        return 1 / n**2, 1 / m**2, -2 / (n * m), len(self.scales) * (1 / n + 1 / m)


class RowNllOptions(NamedTuple):
    """Settings of `row_nll`, the likelihoods with a class dimension.

    `form`: "categorical", "multinomial" or "logistic_mixture", and its numbers. `segments` rows
    are one sample. `reduce`: "elem" (per position), "sample" or "sum"; the loss is multiplied by
    `factor`, the gradient by `grad_factor`.
    """

    form: str
    numbers: tuple[float, ...]
    segments: int
    reduce: str
    factor: float
    grad_factor: float

    def loss_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the loss for parameters [R, C, S]."""
        rows, _, inner = shape
        return {"elem": (rows, inner), "sample": (rows // self.segments,)}.get(self.reduce, ())


class LinearNllOptions(NamedTuple):
    """Settings of `linear_nll`.

    `form`, `numbers`, `scalar` and `uint8_scale` are the likelihood's, `by_row` whether it is one
    with a class dimension. `links`, one per head: "identity", "exp" or "softplus". `dtype` is the
    GEMMs'. A chunk has at most `rows` rows. The gradients are multiplied by `grad_factor`.
    """

    form: str
    numbers: tuple[float, ...]
    by_row: bool
    scalar: int
    uint8_scale: float
    links: tuple[str, ...]
    dtype: torch.dtype
    rows: int
    grad_factor: float
