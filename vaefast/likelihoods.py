"""p(x|z): what the decoder's output means, as small frozen dataclasses.

A likelihood names a form (a kernel of that name on every backend), the parameter tensors that
the form reads, and its numbers. `Likelihood.forms()` lists every form there is; tests,
benchmarks and docs walk the registry.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import _args, random

Params = Tensor | tuple[Tensor, ...]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_registry: dict[str, type[Likelihood]] = {}
_defaults: dict[str, Likelihood] = {}
L = TypeVar("L", bound="type[Likelihood]")


class Form(NamedTuple):
    """A kernel's name, the parameters it reads, its numbers, and which parameter is a scalar."""

    name: str
    params: tuple[Tensor, ...]
    numbers: tuple[float, ...]
    scalar: int | None = None


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Base of all likelihoods; a subclass gives `form`, `mean` and `draw`."""

    name: ClassVar[str] = ""
    param_names: ClassVar[tuple[str, ...]] = ()
    target_dtypes: ClassVar[tuple[torch.dtype, ...]] = (
        *_args.FLOAT_DTYPES,
        torch.uint8,
        torch.bool,
    )
    # A uint8 target is a pixel: divided by this on its way into the kernel.
    uint8_scale: ClassVar[float] = 255.0
    binarize: ClassVar[bool] = False

    def form(self, params: tuple[Tensor, ...]) -> Form:
        """The kernel for `params`.

        Raises:
            ValueError: there are too few or too many parameters, or their shapes do not fit.
        """
        raise NotImplementedError

    def mean(self, params: Params) -> Tensor:
        """E[x | params]."""
        raise NotImplementedError

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        """A sample of x from `params` and the noise that `noise(kind)` gives."""
        raise NotImplementedError

    def support(self, target: Tensor) -> Tensor:
        """True per element where `target` is a value that the likelihood gives mass to."""
        return (
            torch.isfinite(target)
            if target.is_floating_point()
            else torch.ones_like(target, dtype=torch.bool)
        )

    @torch.no_grad()
    def sample(
        self,
        params: Params,
        *,
        seed: random.Seed | None = None,
        generator: random.Generator | None = None,
    ) -> Tensor:
        """A sample of x, of the parameters' shape and dtype; it carries no gradient.

        Args:
            params: the decoder's output, a tensor or a tuple of tensors.
            seed, generator: as in `rsample`.
        """
        tensors = as_tuple(params)
        first = tensors[0]
        _args.float_tensor("params", first)
        state = random.make_state(first, first.shape[0], seed, generator)
        dtype = _args.compute_dtype(*tensors)
        wide = tuple(t.to(dtype) for t in tensors)
        return self.draw(wide, Noise(state, first.shape, dtype)).to(first.dtype)

    def _expect(self, params: tuple[Tensor, ...], *counts: int) -> None:
        if len(params) not in counts:
            names = ", ".join(self.param_names)
            raise ValueError(
                f"likelihood {self.name} takes {' or '.join(map(str, counts))} parameter "
                f"tensor(s) of ({names}), got {len(params)}"
            )


class Noise:
    """Uniform or normal noise for `Likelihood.draw`, of the parameters' shape."""

    def __init__(self, state: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
        self.state, self.shape, self.dtype = state, shape, dtype

    def __call__(self, kind: Literal["normal", "uniform"]) -> Tensor:
        make = random.normal if kind == "normal" else random.uniform
        return make(self.shape, self.state, dtype=self.dtype, purpose=random.LIKELIHOOD)


def register(name: str) -> Callable[[L], L]:
    """Class decorator: makes a likelihood known by `name`."""

    def add(cls: L) -> L:
        cls.name = name
        _registry[name] = cls
        # A likelihood that has to be told something has no default.
        with contextlib.suppress(TypeError):
            _defaults[name] = cls()
        return cls

    return add


def resolve(likelihood: Likelihood | str) -> Likelihood:
    """The likelihood object for an object or its lower-case name.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
        TypeError: it is neither.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, str):
        _args.one_of("likelihood", likelihood, tuple(_registry))
        if likelihood not in _defaults:
            raise ValueError(f"likelihood {likelihood!r} has no default settings; pass an object")
        return _defaults[likelihood]
    raise TypeError(
        f"likelihood must be a Likelihood or one of {', '.join(map(repr, _registry))}, "
        f"got {type(likelihood).__name__}"
    )


def registered() -> dict[str, type[Likelihood]]:
    """Every likelihood by its name."""
    return dict(_registry)


def as_tuple(params: Params) -> tuple[Tensor, ...]:
    """`params` as a tuple of tensors."""
    return (params,) if isinstance(params, Tensor) else tuple(params)


def check_scale(name: str, value: object, *words: str) -> None:
    """Raises unless `value` is a positive number, a one-element tensor or one of `words`."""
    if isinstance(value, Tensor):
        _args.float_tensor(name, value)
        if value.numel() != 1:
            raise ValueError(f"{name} as a Tensor must be a scalar, got {list(value.shape)}")
        return
    if isinstance(value, str) and value in words:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        also = "".join(f" or {word!r}" for word in words)
        raise TypeError(f"{name} must be a number, a scalar Tensor{also}, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def scalar_like(value: Tensor, params: Tensor, name: str) -> Tensor:
    """A learned scalar as a 0-dimensional tensor, on the parameters' device."""
    if value.device != params.device:
        raise ValueError(f"{name} must be on device {params.device}, got {value.device}")
    return value.reshape(())


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
    """

    logits: bool = True
    binarize: bool = False  # type: ignore[misc]
    param_names: ClassVar[tuple[str, ...]] = ("logits",)

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 1)
        return Form("bernoulli" if self.logits else "bernoulli_probs", params, ())

    def mean(self, params: Params) -> Tensor:
        (value,) = as_tuple(params)
        return torch.sigmoid(value) if self.logits else value

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        return (noise("uniform") <= self.mean(params)).to(params[0].dtype)

    def support(self, target: Tensor) -> Tensor:
        return (
            (target >= 0) & (target <= 1) if target.is_floating_point() else super().support(target)
        )


@register("gaussian")
@dataclass(frozen=True, eq=False)
class Gaussian(Likelihood):
    """x ~ N(mean, std^2); -log p = (x - mean)^2 / (2 std^2) + log std + log(2 pi) / 2.

    Args:
        std: for params that are the mean alone: a number, a learned scalar tensor, or
            `"optimal"`, std^2 = the mean squared error over the whole unmasked batch, the
            maximum-likelihood value (sigma-VAE, Rybkin et al. 2021). Where params are
            (mean, logvar), std is not used.
        const: False drops the terms that no parameter enters: log(2 pi) / 2, and log std where
            std is a number.
    """

    std: float | Tensor | Literal["optimal"] = 1.0
    const: bool = True
    param_names: ClassVar[tuple[str, ...]] = ("mean", "logvar")

    def __post_init__(self) -> None:
        check_scale("std", self.std, "optimal")

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
        fixed = math.log(self.std) if self.const else 0.0
        return Form("gaussian_fixed", params, (0.5 / self.std**2, constant + fixed))

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
    """

    scale: float | Tensor = 1.0
    const: bool = True
    param_names: ClassVar[tuple[str, ...]] = ("loc", "log_scale")

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)

    def form(self, params: tuple[Tensor, ...]) -> Form:
        self._expect(params, 1, 2)
        constant = math.log(2.0) if self.const else 0.0
        if len(params) == 2:
            return Form("laplace", params, (constant,))
        if isinstance(self.scale, Tensor):
            scale = scalar_like(self.scale, params[0], "scale")
            return Form("laplace_scalar", (*params, scale), (constant,), scalar=1)
        fixed = math.log(self.scale) if self.const else 0.0
        return Form("laplace_fixed", params, (1 / self.scale, constant + fixed))

    def mean(self, params: Params) -> Tensor:
        return as_tuple(params)[0]

    def draw(self, params: tuple[Tensor, ...], noise: Noise) -> Tensor:
        scale = torch.exp(params[1]) if len(params) == 2 else self.scale
        # The quantile function at u, from the side of the median that u is on.
        u = noise("uniform")
        tail = torch.log(2 * torch.minimum(u, 1 - u + 2.0**-33))
        return params[0] - scale * torch.sign(u - 0.5) * torch.minimum(tail, torch.zeros_like(tail))
