"""Likelihoods of counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import _args
from ._base import (
    NOT_NEGATIVE,
    REAL,
    Domain,
    Form,
    Likelihood,
    Noise,
    Params,
    as_tuple,
    check_not_negative,
    keep,
    register,
)
from ._draws import gamma, poisson

__all__ = ["NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]

_COUNTS = (*_args.FLOAT_DTYPES, torch.uint8, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class Counts(Likelihood):
    """What the likelihoods of counts share: targets of integers, stored in any dtype."""

    target_dtypes: ClassVar[tuple[torch.dtype, ...]] = _COUNTS
    uint8_scale: ClassVar[float] = 1.0

    def support(self, target: Tensor) -> Tensor:
        if not target.is_floating_point():
            return target >= 0
        return (target >= 0) & (target == torch.floor(target)) & torch.isfinite(target)


@register("poisson")
@dataclass(frozen=True, eq=False)
class Poisson(Counts):
    """x ~ Poisson(rate); -log p = rate - x log rate + log x!.

    Args:
        log: params are log rates; False: rates.
        const: False drops log x!, as `torch.nn.PoissonNLLLoss` does.

    Example:
        >>> import torch, vaefast as vf
        >>> float(vf.nll(torch.zeros(1, 1), torch.zeros(1, 1), "poisson"))
        1.0
    """

    log: bool = True
    const: bool = True
    param_names: ClassVar[tuple[str, ...]] = ("log_rate",)

    def positive_params(self) -> frozenset[str]:
        return frozenset() if self.log else frozenset({"log_rate"})

    def domain(self, name: str) -> Domain:
        return REAL if self.log else NOT_NEGATIVE

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 1)
        return Form("poisson" if self.log else "poisson_rate", params, (float(self.const),))

    def mean(self, params: Params) -> Tensor:
        (value,) = as_tuple(params)
        return torch.exp(value) if self.log else value

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        return poisson(self.mean(params).double(), noise)


@register("negative_binomial")
@dataclass(frozen=True, eq=False)
class NegativeBinomial(Counts):
    """x ~ Poisson(Gamma(theta, mu / theta)): mean mu, variance mu + mu^2 / theta.

    -log p = (x + theta) log((mu + theta) / theta) - x log(mu / theta)
             + log Gamma(theta) + log x! - log Gamma(x + theta),
    computed without those differences, so that it is right for counts to 1e6 and theta to 1e8.
    params are (mu, theta), both positive, as in scvi-tools (Lopez et al. 2018); theta may be
    `[G]`, one per column.

    Args:
        eps: is added to mu in the density. At mu = 0, where a softmax underflowed, a count above 0
            has an infinite loss and gradient; with scvi-tools' 1e-8 a large one, x log(1 / eps),
            and the gradient -x / eps.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, theta = torch.full((4, 10), 2.0), torch.ones(10)
        >>> loss = vf.nll((mu, theta), torch.zeros(4, 10), "negative_binomial")
        >>> round(float(loss / 10), 4)  # a geometric distribution: P(0) = 1 / (1 + mu)
        1.0986
    """

    eps: float = 0.0
    param_names: ClassVar[tuple[str, ...]] = ("mu", "theta")

    def __post_init__(self) -> None:
        keep(self, eps=check_not_negative("eps", self.eps))

    def positive_params(self) -> frozenset[str]:
        return frozenset({"mu", "theta"})

    def domain(self, name: str) -> Domain:
        return NOT_NEGATIVE if name == "mu" else super().domain(name)

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 2)
        return Form("negative_binomial", params, (self.eps,))

    def mean(self, params: Params) -> Tensor:
        mu, theta = as_tuple(params)
        return mu.expand(torch.broadcast_shapes(mu.shape, theta.shape))

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        mu, theta = (p.double() for p in params)
        rate = gamma(theta.expand(noise.shape), noise, first=64) * (mu / theta)
        return poisson(rate, noise)


@register("zero_inflated_negative_binomial")
@dataclass(frozen=True, eq=False)
class ZeroInflatedNegativeBinomial(Counts):
    """A `NegativeBinomial` whose count is lost, and 0, with probability sigmoid(dropout_logits).

    params are (mu, theta, dropout_logits), as in scvi-tools (Lopez et al. 2018); theta may be
    `[G]`, one per column.

    Args:
        eps: as in `NegativeBinomial`.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, theta, logits = torch.full((4, 10), 2.0), torch.ones(10), torch.zeros(4, 10)
        >>> likelihood = "zero_inflated_negative_binomial"
        >>> loss = vf.nll((mu, theta, logits), torch.zeros(4, 10), likelihood)
        >>> round(float(loss / 10), 4)  # P(0) = 1/2 + 1/2 1/3
        0.4055
    """

    eps: float = 0.0
    param_names: ClassVar[tuple[str, ...]] = ("mu", "theta", "dropout_logits")

    def __post_init__(self) -> None:
        keep(self, eps=check_not_negative("eps", self.eps))

    def positive_params(self) -> frozenset[str]:
        return frozenset({"mu", "theta"})

    def domain(self, name: str) -> Domain:
        return NOT_NEGATIVE if name == "mu" else super().domain(name)

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 3)
        return Form("zero_inflated_negative_binomial", params, (self.eps,))

    def mean(self, params: Params) -> Tensor:
        mu, theta, dropout = as_tuple(params)
        shape = torch.broadcast_shapes(mu.shape, theta.shape, dropout.shape)
        return (mu * torch.sigmoid(-dropout)).expand(shape)

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        mu, theta, dropout = (p.double() for p in params)
        rate = gamma(theta.expand(noise.shape), noise, first=64) * (mu / theta)
        lost = noise("uniform", 63, torch.float64) <= torch.sigmoid(dropout)
        return torch.where(lost, 0.0, poisson(rate, noise))
