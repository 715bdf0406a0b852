"""What the decoder's output means, and what the encoder is shown of the data: one table for every
likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backends.reference.linear_nll import linked
from ...likelihoods import (
    PROBABILITY,
    Categorical,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gaussian,
    Laplace,
    Likelihood,
    Multinomial,
    Params,
    load_plugins,
    registered,
    registered_rows,
)
from ...ops.linear_nll import links_for
from .. import InputError

Input = Literal["raw", "log1p", "one_hot", "standard"]
ScalePer = Literal["all", "column", "element"]

COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial", "multinomial")
# Around a location: the data's own location and scale make them indifferent to its units.
LOCATION = ("gaussian", "laplace", "log_cosh", "student_t")
# What has a scale of its own unless told: one for all pixels is the usual choice for images, where
# a scale per pixel shrinks on pixels that never change and outweighs the rest; one per gene is
# scvi-tools'.
_SCALE_PER: dict[str, ScalePer] = {
    "gaussian": "all",
    "laplace": "all",
    "negative_binomial": "column",
    "zero_inflated_negative_binomial": "column",
}
# The fields that a number or a word fixes, or that `scale_per` is about.
_FIXED = ("std", "scale")
_LEVELS = (DiscretizedLogistic, DiscretizedLogisticMixture)
# One-hot inputs up to so many classes; above, levels.
_ONE_HOT = 64


def likelihood_names() -> tuple[str, ...]:
    """Every likelihood that `--likelihood` takes, those of plugins too."""
    return (*registered(), *registered_rows())


def likelihood_class(name: str) -> type[Likelihood]:
    """The likelihood of this name.

    Raises:
        InputError: there is none.
    """
    for attempt in (0, 1):
        known = {**registered(), **registered_rows()}
        if name in known:
            return known[name]
        if attempt == 0:
            load_plugins()
    raise InputError(f"likelihood must be one of {', '.join(known)}, got {name!r}")


def likelihood_settings(name: str) -> dict[str, Any]:
    """The settings that a likelihood has here, with their defaults: the dataclass's fields, and
    `scale_per` where it has a scale, or `classes`. A `std` or `scale` of None is learned."""
    cls = likelihood_class(name)
    found = {f.name: f.default for f in fields(cls) if f.name not in ("dim", "channels")}
    found |= {key: None for key in _FIXED if key in found}
    if len(cls.param_names) > 1:
        found["scale_per"] = _SCALE_PER.get(name, "element")
    if name == "categorical":
        found["classes"] = None
    return found


def likelihood_kinds(name: str) -> dict[str, Any]:
    """The type of each of these settings; Any where the likelihood's class alone knows."""
    try:
        hints = get_type_hints(likelihood_class(name))
    except (NameError, TypeError):
        # A user's class that imports its types for a checker alone.
        hints = {}
    found = {key: hints.get(key, Any) for key in likelihood_settings(name)}
    found = {key: kind if kind in (bool, int, float, str) else Any for key, kind in found.items()}
    own = {
        "scale_per": ScalePer,
        "classes": int | None,
        **dict.fromkeys(_FIXED, float | str | None),
    }
    return found | {key: kind for key, kind in own.items() if key in found}


class Head(nn.Module):
    """The likelihood with its settings, the links from the decoder's output to its parameters, and
    the encoder's view of the data.

    Args:
        name: of the likelihood.
        shape: of one sample.
        scale: where a learned scale begins.
        settings: of the likelihood, as `likelihood_settings` lists them. `scale_per`: `"all"`
            data share one learned scale (variance, theta), each `"column"` has one, or the
            decoder gives one for each `"element"`. A number or a word for a Gaussian's `std` or a
            Laplace's `scale` takes its place.
        inputs: what the encoder is shown: the data as they are (`"raw"`), `"log1p"` of counts,
            `"one_hot"` classes, or (x - shift) / spread (`"standard"`), which the locations that
            the decoder gives are in too.
    """

    shift: Tensor
    spread: Tensor

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        scale: float = 1.0,
        settings: Mapping[str, Any] | None = None,
        inputs: Input = "raw",
    ) -> None:
        super().__init__()
        self.name, self.shape, self.input = name, tuple(shape), inputs
        self.settings = dict(settings or {})
        given = {key: value for key, value in self.settings.items() if value is not None}
        known = likelihood_settings(name)
        unknown = given.keys() - known.keys()
        if unknown:
            raise InputError(
                f"likelihood {name} has no setting {', '.join(sorted(unknown))}; it has "
                f"{', '.join(known) or 'none'}"
            )
        cls = likelihood_class(name)
        names = cls.param_names
        self.scale_per: ScalePer | None = None
        if len(names) > 1:
            wanted = given.pop("scale_per", known["scale_per"])
            self.scale_per = None if given.keys() & set(_FIXED) else wanted
            if self.scale_per not in (None, "all", "column", "element"):
                raise InputError(
                    f"scale_per must be all, column or element, got {self.scale_per!r}"
                )
        classes = given.pop("classes", None)
        if name == "categorical" and (not isinstance(classes, int) or classes < 2):
            raise InputError(f"likelihood categorical needs classes, at least 2, got {classes}")
        # 0 where there are none.
        self.classes: int = classes or 0
        if cls is DiscretizedLogisticMixture:
            if len(self.shape) != 3 or self.shape[0] not in (1, 3):
                raise InputError(
                    "likelihood discretized_logistic_mixture takes images of 1 or 3 channels, got "
                    f"samples of shape {list(self.shape)}"
                )
            given["channels"] = self.shape[0]
        if cls is Multinomial and len(self.shape) != 1:
            raise InputError(
                f"likelihood multinomial takes vectors of counts [D], got {list(self.shape)}"
            )
        try:
            self.base = cls(**given)
        except (TypeError, ValueError) as error:
            raise InputError(f"likelihood {name}: {error}") from None
        # One learned scalar has kernels of its own; elsewhere a shared scale is spread out.
        self._scalar = self.scale_per == "all" and cls in (Gaussian, Laplace)
        one = self._scalar or (len(names) > 1 and self.scale_per is None)
        count = 1 if one else len(names)
        self.names = names[:count]
        links = links_for(None, self.base, count)
        self.links = tuple(
            "sigmoid" if self.base.domain(name) is PROBABILITY else link
            for name, link in zip(self.names, links, strict=True)
        )
        self.shared = names[1] if self.scale_per in ("all", "column") and count > 1 else None
        if self._scalar:
            self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        elif self.shared is not None:
            size = () if self.scale_per == "all" else self.shape
            self.raw_scale = nn.Parameter(torch.zeros(size))
        if inputs == "standard":
            wide = (self.shape[0], 1, 1) if len(self.shape) == 3 else self.shape
            self.register_buffer("shift", torch.zeros(wide))
            self.register_buffer("spread", torch.ones(wide))

    @property
    def inputs(self) -> tuple[int, ...]:
        """The shape of what the encoder is shown of one sample."""
        if self.input == "one_hot":
            return (self.classes * self.shape[0], *self.shape[1:])
        return self.shape

    @property
    def outputs(self) -> tuple[int, ...]:
        """The shape of what the decoder gives for one sample."""
        first, *rest = self.shape
        if isinstance(self.base, Categorical):
            return (self.classes * first, *rest)
        if isinstance(self.base, DiscretizedLogisticMixture):
            return (self.base.size, *rest)
        return ((len(self.names) - (self.shared is not None)) * first, *rest)

    def forward(self) -> Likelihood:
        """p(x|z), with its learned scale as it is now."""
        if self._scalar:
            std = self.log_scale.exp()
            key = "std" if isinstance(self.base, Gaussian) else "scale"
            kept = {f.name: getattr(self.base, f.name) for f in fields(self.base)}
            return type(self.base)(**{**kept, key: std})
        return self.base

    def show(self, x: Tensor) -> Tensor:
        """Data `[B, *shape]` as the encoder is shown them, `[B, *inputs]`."""
        if self.input == "one_hot":
            hot = F.one_hot(x.long(), self.classes).movedim(-1, 1)
            return hot.flatten(1, 2).to(torch.get_default_dtype())
        values = self.values(x)
        if self.input == "log1p":
            return torch.log1p(values)
        if self.input == "standard":
            return (values - self.shift) / self.spread
        return values / (self.classes - 1) if self.classes else values

    def target(self, x: Tensor) -> Tensor:
        """Data as the likelihood takes them: what it has no kernel for in another dtype."""
        if isinstance(self.base, Categorical):
            return x if x.dtype in (torch.uint8, torch.int64, torch.int32) else x.long()
        if x.dtype not in self.base.target_dtypes:
            return x.to(torch.uint8 if x.dtype == torch.bool else torch.get_default_dtype())
        return x

    def values(self, x: Tensor) -> Tensor:
        """Data in the units of the likelihood's mean, floating."""
        if x.is_floating_point():
            return x
        values = x.to(torch.get_default_dtype())
        if x.dtype != torch.uint8 or isinstance(self.base, Categorical):
            return values
        if isinstance(self.base, _LEVELS):
            width: float = (self.base.high - self.base.low) / (2**self.base.bits - 1)
            return self.base.low + values * width
        return values / self.base.uint8_scale

    def shades(self, values: Tensor) -> Tensor:
        """Values in the mean's units as grey levels in [0, 1]."""
        low, high = 0.0, 1.0
        if isinstance(self.base, _LEVELS):
            low, high = self.base.low, self.base.high
        elif self.classes:
            high = self.classes - 1.0
        return ((values - low) / (high - low)).clamp(0, 1)

    def params(self, out: Tensor, lead: torch.Size) -> Params:
        """The likelihood's parameters `[*lead, ...]` from the decoder's output `[N, *outputs]`."""
        if isinstance(self.base, Categorical):
            return out.reshape(*lead, self.classes, *self.shape)
        if isinstance(self.base, (DiscretizedLogisticMixture, Multinomial)):
            return out.reshape(*lead, *self.outputs)
        made = iter(out.chunk(len(self.names) - (self.shared is not None), 1))
        found: list[Tensor] = []
        for name, link in zip(self.names, self.links, strict=True):
            shared = name == self.shared
            raw = self.raw_scale if shared else next(made).reshape(*lead, *self.shape)
            value = torch.sigmoid(raw) if link == "sigmoid" else linked(raw, link)
            if self.input == "standard":
                value = self._in_units(name, value)
            if shared:
                # theta [G] has a kernel that reads it as it is.
                row = name == "theta" and len(self.shape) == 1
                value = value.expand(self.shape) if row else value.expand_as(found[0])
            found.append(value)
        return tuple(found) if len(found) > 1 else found[0]

    def _in_units(self, name: str, value: Tensor) -> Tensor:
        if name in ("mean", "loc"):
            return self.shift + self.spread * value
        if name == "logvar":
            return value + 2 * self.spread.log()
        return value + self.spread.log()

    @torch.no_grad()
    def begin(self, x: Tensor) -> Tensor | None:
        """Takes the data's location and scale from samples x `[N, *shape]`; what the decoder's last
        bias should be, `[*outputs]`, so that training starts at the data's mean, or None."""
        values = self.values(x)
        if self.input == "standard":
            across = (0, 2, 3) if len(self.shape) == 3 else (0,)
            spread, shift = torch.std_mean(values, dim=across, correction=0)
            floor = max(1e-3 * values.std(correction=0).item(), 1e-6)
            self.shift.copy_(shift.view_as(self.shift))
            self.spread.copy_(spread.clamp(min=floor).view_as(self.spread))
            return None
        mean = values.mean(0)
        if self.name == "bernoulli":
            start = torch.logit(mean.clamp(0.01, 0.99))
        elif self.name in COUNTS:
            start = mean.clamp(min=0.5 / len(values)).log()
        else:
            return None
        first = torch.zeros(self.outputs)
        first[: self.shape[0]] = start
        return first


def input_for(name: str, settings: Mapping[str, Any]) -> Input:
    """What an encoder is best shown of the data that a likelihood is for."""
    if name in COUNTS:
        return "log1p"
    if name in LOCATION:
        return "standard"
    classes = settings.get("classes")
    if name == "categorical" and isinstance(classes, int):
        return "one_hot" if classes <= _ONE_HOT else "raw"
    return "raw"


def fitted_settings(
    name: str, settings: Mapping[str, Any], low: float, high: float
) -> dict[str, Any]:
    """A likelihood's settings, and what the data's range, `low` to `high`, says of the rest."""
    found = dict(settings)
    if name == "categorical" and found.get("classes") is None:
        found["classes"] = max(2, int(high) + 1)
    return found
