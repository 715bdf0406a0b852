"""What every likelihood is, the registry of them, and what they share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import _args, random

Params = Tensor | tuple[Tensor, ...]

_registry: dict[str, type[Likelihood]] = {}
_defaults: dict[str, Likelihood] = {}
_rows: dict[str, type[Likelihood]] = {}
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

    def form(self, params: tuple[Tensor, ...]) -> Form:
        """The kernel for `params`.

        Raises:
            ValueError: there are too few or too many parameters, or their shapes do not fit.
        """
        raise NotImplementedError

    def draws_target(self) -> bool:
        """True where the target is drawn from the intensities that are given."""
        return False

    def positive_params(self) -> frozenset[str]:
        """The names of the parameters that must be positive."""
        return frozenset()

    def fewest_params(self) -> int:
        """The least number of parameter tensors that it takes."""
        return next(
            (
                count
                for count in range(1, len(self.param_names))
                if self._takes(tuple(torch.zeros(1, 1) for _ in range(count)))
            ),
            len(self.param_names),
        )

    def _takes(self, params: tuple[Tensor, ...]) -> bool:
        with contextlib.suppress(ValueError):
            self.form(params)
            return True
        return False

    def lead(self, params: Tensor, target: Tensor) -> int:
        """How many leading dimensions of the (first) parameter index samples: 1, or 2 with a K."""
        return 1 + params.dim() - target.dim()

    def elements(self, target: Tensor) -> torch.Size:
        """The shape `[B, ...]` of what has a loss of its own."""
        return target.shape

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

    def form_for(self, params: tuple[Tensor, ...], target: Tensor) -> Form:
        """As `form`, where it depends on how the target is stored."""
        return self.form(params)

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
    """Uniform or normal noise for `Likelihood.draw`, of the parameters' shape.

    `draw` counts independent draws from one state: each has a Philox purpose of its own.
    """

    def __init__(self, state: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
        self.state, self.shape, self.dtype = state, shape, dtype

    def __call__(
        self,
        kind: Literal["normal", "uniform"],
        draw: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        make = random.normal if kind == "normal" else random.uniform
        purpose = random.LIKELIHOOD + (draw << 8)
        return make(self.shape, self.state, dtype=dtype or self.dtype, purpose=purpose)


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


def register_rows(name: str) -> Callable[[L], L]:
    """As `register`, for a likelihood with a class dimension."""

    def add(cls: L) -> L:
        cls.name = name
        _rows[name] = cls
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
        _args.one_of("likelihood", likelihood, (*_registry, *_rows))
        if likelihood not in _defaults:
            raise ValueError(f"likelihood {likelihood!r} has no default settings; pass an object")
        return _defaults[likelihood]
    raise TypeError(
        f"likelihood must be a Likelihood or one of {', '.join(map(repr, (*_registry, *_rows)))}, "
        f"got {type(likelihood).__name__}"
    )


def registered() -> dict[str, type[Likelihood]]:
    """Every elementwise likelihood by its name."""
    return dict(_registry)


def registered_rows() -> dict[str, type[Likelihood]]:
    """Every likelihood with a class dimension by its name."""
    return dict(_rows)


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


def check_number(name: str, value: object) -> None:
    """Raises unless `value` is a positive, finite number."""
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be a number, got a Tensor")
    check_scale(name, value)


def check_levels(bits: int, low: float, high: float) -> None:
    """Raises unless there are 2 to 2^16 levels between `low` and a greater `high`."""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits must be an int, got {bits!r}")
    if not 1 <= bits <= 16:
        raise ValueError(f"bits must be between 1 and 16, got {bits}")
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"low must be below high, both finite, got {low} and {high}")


def scalar_like(value: Tensor, params: Tensor, name: str) -> Tensor:
    """A learned scalar as a 0-dimensional tensor, on the parameters' device."""
    if value.device != params.device:
        raise ValueError(f"{name} must be on device {params.device}, got {value.device}")
    return value.reshape(())
