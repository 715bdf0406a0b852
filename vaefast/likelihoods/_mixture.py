"""The mixture of discretised logistics of PixelCNN++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import _args, random
from ..backends.reference._exact import clamp
from ._base import Params, keep, keep_levels, register_rows
from ._pixels import DiscretizedLogistic
from ._rows import RowLikelihood, Rows, drawn_class

__all__ = ["DiscretizedLogisticMixture"]


@register_rows("discretized_logistic_mixture")
@dataclass(frozen=True, eq=False)
class DiscretizedLogisticMixture(RowLikelihood):
    """A mixture of M `DiscretizedLogistic` per pixel, its channels tied by linear coefficients.

    -log p(x) = -log sum_m softmax(logits)_m prod_c P(x_c | loc_mc, log_scale_mc), where
    loc_m0 = mean_m0, loc_m1 = mean_m1 + tanh(k_m0) x_0,
    loc_m2 = mean_m2 + tanh(k_m1) x_0 + tanh(k_m2) x_1 (Salimans et al. 2017, equation 3).

    Args:
        channels: 3 or 1.
        mixtures: M.
        bits: a channel has 2^bits levels.
        dim: the dimension of params that packs them, and of the target's channels: 1 or -1.
        low, high: the first and the last level in a floating-point target, and the units of the
            means. A uint8 target is the level itself.
        min_log_scale: a lesser log-scale counts as this one, and gets no gradient.

    Packed as the original: `[M logits | per channel: M means, M log-scales, M coefficients]`, 10 M
    for three channels; `[M logits | M means | M log-scales]`, 3 M, for one. An "element" of
    `reduction`, `mask` and `weight` is a pixel, all its channels together: `"none"` gives
    `[B, H, W]`.

    Example:
        >>> import torch, vaefast as vf
        >>> likelihood = vf.DiscretizedLogisticMixture(channels=1, mixtures=5)
        >>> params = torch.zeros(4, 15, 2, 2)
        >>> image = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
        >>> vf.nll(params, image, likelihood, reduction="none").shape
        torch.Size([4, 2, 2])
    """

    channels: int = 3
    mixtures: int = 10
    bits: int = 8
    dim: int = 1
    low: float = -1.0
    high: float = 1.0
    min_log_scale: float = -7.0
    param_names: ClassVar[tuple[str, ...]] = ("packed",)
    target_dtypes: ClassVar[tuple[torch.dtype, ...]] = (*_args.FLOAT_DTYPES, torch.uint8)
    uint8_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        keep(
            self,
            channels=_args.integer("channels", self.channels),
            mixtures=_args.integer("mixtures", self.mixtures),
            min_log_scale=_args.number("min_log_scale", self.min_log_scale),
        )
        keep_levels(self, self.bits, self.low, self.high)
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.mixtures < 1:
            raise ValueError(f"mixtures must be at least 1, got {self.mixtures}")

    @property
    def size(self) -> int:
        """How many numbers params hold per pixel."""
        return self.mixtures * (10 if self.channels == 3 else 3)

    @property
    def class_dim(self) -> int:
        return self.dim

    @property
    def _levels(self) -> DiscretizedLogistic:
        return DiscretizedLogistic(self.bits, self.low, self.high)

    def rows(self, params: Params, target: Tensor) -> Rows:
        packed = self._one(params)
        lead = self.lead(packed, target)
        if lead in (1, 2) and packed.shape[self._dim(packed, lead)] != self.size:
            raise ValueError(
                f"params must hold {self.size} numbers per pixel in dimension {self.dim}, got "
                f"{list(packed.shape)}"
            )
        top = 2.0**self.bits - 1
        width = (self.high - self.low) / top
        slope, shift = (1.0, 0.0) if target.dtype == torch.uint8 else (1 / width, -self.low / width)
        numbers = (slope, shift, self.low, width, top, self.min_log_scale)
        shape = (float(self.mixtures), float(self.channels))
        return self._fitted(
            packed, target, "logistic_mixture", (*numbers, *shape), (self.channels,)
        )

    def elements(self, target: Tensor) -> torch.Size:
        at = self._dim(target, 1)
        return torch.Size((*target.shape[:at], *target.shape[at + 1 :]))

    def support(self, target: Tensor) -> Tensor:
        return self._levels.support(target)

    def mean(self, params: Params) -> Tensor:
        """E[x], `[B, channels, ...]`. For three channels the later ones lean on the means of the
        earlier: exact but for what is cut off at the ends of the range."""
        packed = self._one(params)
        logits, groups = self._unpacked(packed.movedim(self._dim(packed, 1), -1))
        share = torch.softmax(logits, -1)
        means: list[Tensor] = []
        for c in range(self.channels):
            log_scale = clamp(groups[..., c, 1, :], low=self.min_log_scale)
            loc = self._location(groups, c, means)
            means.append(self._levels.mean((loc, log_scale)))
        result = torch.stack([(share * m).sum(-1) for m in means], -1)
        return result.movedim(-1, self._dim(packed, 1))

    @torch.no_grad()
    def sample(
        self,
        params: Params,
        *,
        seed: random.Seed | None = None,
        generator: random.Generator | None = None,
    ) -> Tensor:
        """Pixels `[B, channels, ...]` at the levels of `[low, high]`, in the params' dtype."""
        packed = self._one(params)
        rows, noise = self._noise(packed, seed, generator)
        logits, groups = self._unpacked(rows.movedim(1, -1))
        chosen = drawn_class(logits.movedim(-1, 1), noise("uniform"))
        index = chosen[..., None, None, None].expand(*groups.shape[:-1], 1)
        one = groups.gather(-1, index)
        pixels: list[Tensor] = []
        for c in range(self.channels):
            u = noise("uniform", 1 + c)[..., None]
            log_scale = one[..., c, 1, :].clamp(min=self.min_log_scale)
            pixels.append(self._levels.quantile((self._location(one, c, pixels), log_scale), u))
        at = self._dim(packed, 1)
        shape = (*packed.shape[:at], self.channels, *packed.shape[at + 1 :])
        return torch.cat(pixels, -1).movedim(-1, 1).reshape(shape).to(packed.dtype)

    def _unpacked(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [..., M] and [..., channels, 2 or 3, M] from params with their dimension last."""
        each = 3 if self.channels == 3 else 2
        rest = last[..., self.mixtures :]
        return last[..., : self.mixtures], rest.unflatten(-1, (self.channels, each, self.mixtures))

    def _location(self, groups: Tensor, channel: int, before: list[Tensor]) -> Tensor:
        loc = groups[..., channel, 0, :]
        for k, x in enumerate(before):
            # Coefficient 0 ties channel 1 to 0; 1 and 2 tie channel 2 to 0 and 1.
            loc = loc + torch.tanh(groups[..., k if channel == 1 else 1 + k, 2, :]) * x
        return loc
