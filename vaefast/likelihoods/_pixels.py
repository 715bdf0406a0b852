"""Likelihoods of pixels of a few levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import _args
from ..backends.reference._exact import decayed
from ._base import Form, Likelihood, Noise, Params, as_tuple, keep_levels, register

__all__ = ["DiscretizedLogistic"]


@register("discretized_logistic")
@dataclass(frozen=True, eq=False)
class DiscretizedLogistic(Likelihood):
    """The mass that a logistic of (loc, log_scale) gives to a pixel's bin.

    -log p = -log(sigmoid((c + h - loc) / s) - sigmoid((c - h - loc) / s)), c the pixel's level,
    2 h the distance of two levels; the first and the last bin reach to -inf and inf (Kingma et
    al. 2016, Salimans et al. 2017). Never NaN, however small or large the scale.

    Args:
        bits: a pixel has 2^bits levels.
        low, high: the values of the first and the last level in a floating-point target, and the
            units of loc. A uint8 target is the level itself, whatever these are. A value between
            two levels counts as the nearer one.

    Example:
        >>> import torch, vaefast as vf
        >>> loc, log_scale = torch.zeros(4, 1, 2, 2), torch.full((4, 1, 2, 2), 9.0)
        >>> image = torch.full((4, 1, 2, 2), 255, dtype=torch.uint8)
        >>> loss = vf.nll((loc, log_scale), image, "discretized_logistic")
        >>> round(float(loss / 4), 3)  # so wide a scale leaves half the mass to the last bin
        0.693
    """

    bits: int = 8
    low: float = -1.0
    high: float = 1.0
    param_names: ClassVar[tuple[str, ...]] = ("loc", "log_scale")
    target_dtypes: ClassVar[tuple[torch.dtype, ...]] = (*_args.FLOAT_DTYPES, torch.uint8)
    uint8_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        keep_levels(self, self.bits, self.low, self.high)

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 2)
        return Form("discretized_logistic", params, self._numbers(1 / self._bin))

    def form_for(self, params: tuple[Tensor, ...], target: Tensor) -> Form:
        if target.dtype != torch.uint8:
            return self.form(params)
        return self.form(params)._replace(numbers=self._numbers(None))

    def _numbers(self, per_unit: float | None) -> tuple[float, ...]:
        slope, shift = (1.0, 0.0) if per_unit is None else (per_unit, -self.low * per_unit)
        return (slope, shift, self.low, self._bin, self._top, math.log(self._bin))

    @property
    def _top(self) -> float:
        return 2.0**self.bits - 1

    @property
    def _bin(self) -> float:
        return (self.high - self.low) / self._top

    def mean(self, params: Params) -> Tensor:
        """E[x] of the discretised variable: low + bin sum_k P(x > level k)."""
        loc, log_scale = as_tuple(params)
        above = torch.zeros_like(loc)
        for level in range(int(self._top)):
            edge = self.low + (level + 0.5) * self._bin
            above = above + torch.sigmoid(decayed(loc - edge, log_scale, finite=True))
        return self.low + self._bin * above

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        return self.quantile(params, noise("uniform"))

    def quantile(self, params: tuple[Tensor, ...], u: Tensor) -> Tensor:
        """The level at probability u in (0, 1]."""
        loc, log_scale = params
        # u may be 1: its logit is then that of the last but one, 1 - 2^-33.
        logit = (torch.log(u) - torch.log1p(-u)).clamp(max=33 * math.log(2))
        x = loc + torch.exp(log_scale) * logit
        level = torch.round((x - self.low) / self._bin).clamp(0.0, self._top)
        return self.low + level * self._bin

    def support(self, target: Tensor) -> Tensor:
        if target.dtype == torch.uint8:
            return target <= self._top
        slack = 1e-6 * (self.high - self.low)
        return (target >= self.low - slack) & (target <= self.high + slack)
