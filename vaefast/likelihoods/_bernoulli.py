"""Likelihoods of values in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ._base import PROBABILITY, REAL, Domain, Form, Likelihood, Noise, Params, as_tuple, register

__all__ = ["Bernoulli", "ContinuousBernoulli"]


@register("bernoulli")
@dataclass(frozen=True, eq=False)
class Bernoulli(Likelihood):
    """x ~ Bernoulli(sigmoid(logits)); -log p = softplus(l) - x l.

    Args:
        logits: params are logits; False: probabilities, with each logarithm at least -100 as in
            `torch.nn.functional.binary_cross_entropy`.
        binarize: targets are intensities, and a binary target is drawn from them.

    A target in (0, 1) gives the cross-entropy, which is no density in x: see
    `ContinuousBernoulli`.

    Example:
        >>> import torch, vaefast as vf
        >>> logits, x = torch.zeros(4, 10), torch.ones(4, 10)
        >>> loss = vf.nll(logits, x, vf.Bernoulli())
        >>> round(float(loss / 10), 4)  # log 2 a pixel
        0.6931
    """

    logits: bool = True
    binarize: bool = False
    param_names: ClassVar[tuple[str, ...]] = ("logits",)

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 1)
        return Form("bernoulli" if self.logits else "bernoulli_probs", params, ())

    def domain(self, name: str) -> Domain:
        return REAL if self.logits else PROBABILITY

    def draws_target(self) -> bool:
        return self.binarize

    def mean(self, params: Params) -> Tensor:
        (value,) = as_tuple(params)
        return torch.sigmoid(value) if self.logits else value

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        return (noise("uniform") <= self.mean(params)).to(params[0].dtype)

    def support(self, target: Tensor) -> Tensor:
        return (
            (target >= 0) & (target <= 1) if target.is_floating_point() else super().support(target)
        )


@register("continuous_bernoulli")
@dataclass(frozen=True, eq=False)
class ContinuousBernoulli(Likelihood):
    """x in [0, 1] with density C(l) sigmoid(l)^x sigmoid(-l)^(1-x) = l e^(x l) / (e^l - 1).

    -log p = log((e^l - 1) / l) - x l. Unlike `Bernoulli` at a grey pixel, this is a density: its
    ELBO is a bound (Loaiza-Ganem & Cunningham 2019, equations 5 to 8). params are the logits l;
    the normaliser's 0/0 at l = 0 is a series.

    Example:
        >>> import torch, vaefast as vf
        >>> grey = torch.full((4, 10), 0.5)
        >>> loss = vf.nll(torch.zeros(4, 10), grey, "continuous_bernoulli")
        >>> abs(float(loss)) < 1e-6  # logits of 0: the uniform density, 1 everywhere
        True
    """

    param_names: ClassVar[tuple[str, ...]] = ("logits",)

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 1)
        return Form("continuous_bernoulli", params, ())

    def mean(self, params: Params) -> Tensor:
        """1 / (1 - e^-l) - 1/l, as 1/2 + (coth(l/2)/2 - 1/l)."""
        (logits,) = as_tuple(params)
        near = logits.abs() < 0.5
        far = torch.where(near, 1.0, logits)
        close = torch.where(near, logits, 0.0)
        square = close * close
        series = close * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600)))
        rest = 0.5 / torch.tanh(0.5 * far) - 1 / far
        return 0.5 + torch.where(near, series, rest)

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        """The quantile function log1p(u (e^l - 1)) / l, for -|l|, which cannot overflow."""
        (logits,) = params
        u = noise("uniform")
        size = logits.abs()
        safe = torch.where(size < 1e-4, 1.0, size)
        value = -torch.log1p(u * torch.expm1(-safe)) / safe
        value = torch.where(size < 1e-4, u, value).clamp(0.0, 1.0)
        return torch.where(logits > 0, 1 - value, value)

    def support(self, target: Tensor) -> Tensor:
        return in_unit_interval(target)


def in_unit_interval(target: Tensor) -> Tensor:
    """True per element of `target` in [0, 1]; a pixel in a byte always is."""
    if not target.is_floating_point():
        return torch.ones_like(target, dtype=torch.bool)
    return (target >= 0) & (target <= 1)
