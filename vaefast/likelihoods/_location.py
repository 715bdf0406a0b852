"""Likelihoods of real values around a location."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .._args import log, operand
from ._base import (
    POSITIVE,
    REAL,
    Domain,
    Form,
    Likelihood,
    Noise,
    Params,
    as_tuple,
    check_positive,
    check_scale,
    keep,
    register,
    scalar_like,
)

__all__ = ["Gaussian", "Laplace", "LogCosh", "StudentT"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# The least std^2 of `Gaussian("optimal")`: far below the rounding of float32 data in [0, 1], and
# its inverse times any number of elements is finite.
OPTIMAL_VARIANCE = 1e-12


@register("gaussian")
@dataclass(frozen=True, eq=False)
class Gaussian(Likelihood):
    """x ~ N(mean, std^2); -log p = (x - mean)^2 / (2 std^2) + log std + log(2 pi) / 2.

    Args:
        std: for params that are the mean alone: a number, a learned scalar tensor, or
            `"optimal"`, std^2 = the mean squared error over the whole unmasked batch, the
            maximum-likelihood value (sigma-VAE, Rybkin et al. 2021), or 1e-12 where that is
            more: an exact reconstruction has a finite loss. Where params are
            (mean, logvar), std is not used.
        const: False drops the terms that no parameter enters: log(2 pi) / 2, and log std where
            std is a number.

    Example:
        >>> import torch, vaefast as vf
        >>> mean, x = torch.zeros(4, 10), torch.zeros(4, 10)
        >>> loss = vf.nll(mean, x, vf.Gaussian(std=0.5))
        >>> round(float(loss / 10), 4)  # log 0.5 + log(2 pi) / 2
        0.2258
        >>> learned = torch.tensor(0.5, requires_grad=True)
        >>> vf.nll(mean, x + 1, vf.Gaussian(std=learned)).backward()
        >>> float(learned.grad)
        -60.0
    """

    std: float | Tensor | Literal["optimal"] = 1.0
    const: bool = True
    param_names: ClassVar[tuple[str, ...]] = ("mean", "logvar")

    def __post_init__(self) -> None:
        keep(self, std=check_scale("std", self.std, "optimal"))

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 1, 2)
        constant = _HALF_LOG_2PI if self.const else 0.0
        if len(params) == 2:
            return Form("gaussian", params, (constant,))
        if isinstance(self.std, Tensor):
            std = scalar_like(self.std, params[0], "std")
            return Form("gaussian_scalar", (*params, std), (constant,), scalar=1)
        if isinstance(self.std, str):
            return Form("gaussian_optimal", params, (constant,))
        std = operand(self.std)
        fixed = log(std) if self.const else 0.0
        return Form("gaussian_fixed", params, (0.5 / std**2, constant + fixed))

    def domain(self, name: str) -> Domain:
        return POSITIVE if name == "std" else REAL

    def mean(self, params: Params) -> Tensor:
        return as_tuple(params)[0]

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        if len(params) == 2:
            return params[0] + torch.exp(0.5 * params[1]) * noise("normal")
        if isinstance(self.std, str):
            raise ValueError(
                "a Gaussian with std='optimal' knows its std only beside a target; sample with "
                "a number or a tensor for std"
            )
        return params[0] + self.std * noise("normal")


@register("laplace")
@dataclass(frozen=True, eq=False)
class Laplace(Likelihood):
    """x ~ Laplace(loc, b); -log p = |x - loc| / b + log(2 b).

    Args:
        scale: b, for params that are the location alone: a number or a learned scalar tensor.
            Where params are (loc, log_scale), it is not used.
        const: False drops the terms that no parameter enters: log 2, and log b where b is a
            number.

    Example:
        >>> import torch, vaefast as vf
        >>> loc, log_scale, x = torch.zeros(3, 4, 10)
        >>> loss = vf.nll((loc, log_scale), x + 1, "laplace")
        >>> round(float(loss / 10), 4)  # 1 + log 2
        1.6931
    """

    scale: float | Tensor = 1.0
    const: bool = True
    param_names: ClassVar[tuple[str, ...]] = ("loc", "log_scale")

    def __post_init__(self) -> None:
        keep(self, scale=check_scale("scale", self.scale))

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 1, 2)
        constant = math.log(2.0) if self.const else 0.0
        if len(params) == 2:
            return Form("laplace", params, (constant,))
        if isinstance(self.scale, Tensor):
            scale = scalar_like(self.scale, params[0], "scale")
            return Form("laplace_scalar", (*params, scale), (constant,), scalar=1)
        scale = operand(self.scale)
        fixed = log(scale) if self.const else 0.0
        return Form("laplace_fixed", params, (1 / scale, constant + fixed))

    def domain(self, name: str) -> Domain:
        return POSITIVE if name == "scale" else REAL

    def mean(self, params: Params) -> Tensor:
        return as_tuple(params)[0]

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        scale = torch.exp(params[1]) if len(params) == 2 else self.scale
        # The quantile function at u, from the side of the median that u is on.
        u = noise("uniform")
        tail = torch.log(2 * torch.minimum(u, 1 - u + 2.0**-33))
        return params[0] - scale * torch.sign(u - 0.5) * torch.minimum(tail, torch.zeros_like(tail))


@register("log_cosh")
@dataclass(frozen=True, eq=False)
class LogCosh(Likelihood):
    """x with density sech((x - loc) / b) / (pi b); -log p = log cosh((x - loc) / b) + log(pi b).

    Quadratic near loc and linear far from it: the log-cosh loss with its true normaliser, the
    hyperbolic secant distribution (Chen et al. 2019, "Log Hyperbolic Cosine Loss Improves VAE").

    Args:
        scale: b, for params that are the location alone. Where params are (loc, log_scale), it
            is not used.
        const: False drops log pi, and log b where b is a number.

    Example:
        >>> import torch, vaefast as vf
        >>> loc, x = torch.zeros(4, 10), torch.zeros(4, 10)
        >>> round(float(vf.nll(loc, x, vf.LogCosh(scale=1.0)) / 10), 4)  # log pi
        1.1447
    """

    scale: float = 1.0
    const: bool = True
    param_names: ClassVar[tuple[str, ...]] = ("loc", "log_scale")

    def __post_init__(self) -> None:
        keep(self, scale=check_positive("scale", self.scale))

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 1, 2)
        constant = math.log(math.pi) if self.const else 0.0
        if len(params) == 2:
            return Form("log_cosh", params, (constant,))
        scale = operand(self.scale)
        fixed = log(scale) if self.const else 0.0
        return Form("log_cosh_fixed", params, (1 / scale, constant + fixed))

    def mean(self, params: Params) -> Tensor:
        return as_tuple(params)[0]

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        """The quantile function log tan(pi u / 2)."""
        scale = torch.exp(params[1]) if len(params) == 2 else self.scale
        angle = noise("uniform").double() * (0.5 * math.pi)
        # u is a multiple of 2^-32 in (0, 1]; half a step keeps the tangent finite at 1.
        angle = angle - 2.0**-33 * (0.5 * math.pi)
        return params[0] + scale * torch.log(torch.tan(angle)).to(params[0].dtype)


@register("student_t")
@dataclass(frozen=True, eq=False)
class StudentT(Likelihood):
    """x ~ loc + b t(df); -log p = (df + 1)/2 log(1 + d^2/df) + log b + constant, d = (x - loc)/b.

    The constant is log(df pi)/2 + log Gamma(df/2) - log Gamma((df + 1)/2).

    Args:
        df: degrees of freedom, a positive number: 1 is Cauchy's, large is near a Gaussian.
        scale: b, for params that are the location alone. Where params are (loc, log_scale), it
            is not used.
        const: False drops the terms that no parameter enters.

    Example:
        >>> import torch, vaefast as vf
        >>> loc, x = torch.zeros(4, 10), torch.zeros(4, 10)
        >>> cauchy = vf.StudentT(df=1.0)
        >>> round(float(vf.nll(loc, x, cauchy) / 10), 4)  # log pi
        1.1447
    """

    df: float = 4.0
    scale: float = 1.0
    const: bool = True
    param_names: ClassVar[tuple[str, ...]] = ("loc", "log_scale")

    def __post_init__(self) -> None:
        keep(self, df=check_positive("df", self.df))
        keep(self, scale=check_positive("scale", self.scale))

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 1, 2)
        df = operand(self.df)
        constant = student_t_constant(df) if self.const else 0.0
        root, half = df**-0.5, 0.5 * (df + 1)
        if len(params) == 2:
            return Form("student_t", params, (root, half, constant))
        scale = operand(self.scale)
        fixed = log(scale) if self.const else 0.0
        return Form("student_t_fixed", params, (root / scale, half, constant + fixed))

    def mean(self, params: Params) -> Tensor:
        """loc; NaN for df <= 1, which has no mean."""
        loc = as_tuple(params)[0]
        return loc if self.df > 1 else torch.full_like(loc, math.nan)

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        """Bailey 1994, "Polar generation of random variates with the t-distribution"."""
        scale = torch.exp(params[1]) if len(params) == 2 else self.scale
        u, v = noise("uniform"), noise("uniform", 1)
        radius = torch.sqrt(self.df * torch.expm1(torch.log(u) * (-2 / self.df)))
        return params[0] + scale * radius * torch.cos(2 * math.pi * v)


def student_t_constant(df: Any) -> Any:
    """log(df pi)/2 + log Gamma(df/2) - log Gamma((df + 1)/2), where the gammas cancel too; of an
    `operand`."""
    half = 0.5 * df
    # log Gamma(h + 1/2) - log Gamma(h) = log(h)/2 - 1/(8h) + 1/(192h^3) - 1/(640h^5) + ...
    w = 1 / half
    series = _HALF_LOG_2PI + w / 8 - w**3 / 192 + w**5 / 640 - 17 * w**7 / 14336
    if isinstance(df, Tensor):
        gammas = torch.lgamma(half) - torch.lgamma(half + 0.5)
        return torch.where(half < 30, 0.5 * torch.log(df * math.pi) + gammas, series)
    if half < 30:
        return 0.5 * math.log(df * math.pi) + math.lgamma(half) - math.lgamma(half + 0.5)
    return series
