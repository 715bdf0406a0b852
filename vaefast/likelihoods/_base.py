"""What every likelihood is, the registry of them, and what they share."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import _args, backends, random
from ..backends.reference.likelihoods import FORMULAS, Formula

Params = Tensor | tuple[Tensor, ...]

_registry: dict[str, type[Likelihood]] = {}
_defaults: dict[str, Likelihood] = {}
_rows: dict[str, type[Likelihood]] = {}
L = TypeVar("L", bound="type[Likelihood]")


class Domain(NamedTuple):
    """The values that a parameter may have: in words, and per element of a tensor."""

    words: str
    inside: Callable[[Tensor], Tensor]


# Any number; NaN and infinities show in the loss.
REAL = Domain("a number", lambda value: torch.ones_like(value, dtype=torch.bool))
POSITIVE = Domain("positive", lambda value: value > 0)
# A rate of 0 is where the smallest exponentials end: its count is 0.
NOT_NEGATIVE = Domain("at least 0", lambda value: value >= 0)
PROBABILITY = Domain("in [0, 1]", lambda value: (value >= 0) & (value <= 1))


class Form(NamedTuple):
    """A kernel's name, the parameters it reads, its numbers, and which parameter is a scalar."""

    name: str
    params: tuple[Tensor, ...]
    numbers: tuple[float, ...]
    scalar: int | None = None


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Base of all likelihoods; a subclass gives `param_names`, and `form`, `mean`, `draw` and
    `support` where what stands here is not right for it."""

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
        """The kernel for `params`: as it stands here, one of the likelihood's own name that takes
        all parameters, and as numbers the dataclass's fields.

        Raises:
            ValueError: there are too few or too many parameters, or their shapes do not fit.
        """
        self._expect(params, len(self.param_names))
        settings = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return Form(
            self.name,
            params,
            tuple([float(v) if isinstance(v, bool) else _args.number(n, v) for n, v in settings]),
        )

    def draws_target(self) -> bool:
        """True where the target is drawn from the intensities that are given."""
        return False

    def positive_params(self) -> frozenset[str]:
        """The names of the parameters that must be positive."""
        return frozenset()

    def domain(self, name: str) -> Domain:
        """The values that the parameter `name` may have, which `validate=True` checks.

        `name` is one of `param_names`, or a field of the dataclass that holds a learned scalar.
        """
        return POSITIVE if name in self.positive_params() else REAL

    def named_params(self, params: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Every tensor that the likelihood computes with by its name: `params`, and learned
        scalars."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **dict(zip(self.param_names, params, strict=False)),
            **{name: value for name, value in own.items() if isinstance(value, Tensor)},
        }

    def fewest_params(self) -> int:
        """The least number of parameter tensors that it takes."""
        return next(
            (
                count
                for count in range(1, len(self.param_names))
                if self._takes(tuple(self._example() for _ in range(count)))
            ),
            len(self.param_names),
        )

    def _example(self) -> Tensor:
        """A parameter beside the likelihood's own tensors."""
        own = (getattr(self, f.name) for f in fields(self))
        device = next((t.device for t in own if isinstance(t, Tensor)), "cpu")
        return torch.zeros(1, 1, device=device)

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

    def log_prob(self, params: Params, x: Tensor) -> Tensor:
        """log p(x | params) in nats: of each element, or of each position of a likelihood with a
        class dimension.

        Args:
            params: the decoder's output, a tensor or a tuple, `[B, *data]` or `[K, B, *data]`.
            x: as `nll` takes its target, `[B, *data]`.

        Example:
            >>> import torch, vaefast as vf
            >>> vf.Bernoulli().log_prob(torch.zeros(1, 2), torch.ones(1, 2))
            tensor([[-0.6931, -0.6931]])
        """
        # That module imports this one.
        from ..ops.nll import nll

        return -nll(params, x, self, reduction="none")

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


def register(name: str, formula: Formula | None = None, *, triton: str = "") -> Callable[[L], L]:
    """Class decorator: makes a likelihood known by `name`.

    Args:
        name: what `nll`, `elbo_loss` and the others take in the object's place.
        formula: of a likelihood that the library has no kernel for: from the target, the
            parameters and the numbers of `form`, all in the compute dtype, to -log p per element.
            It is differentiated by autograd, runs on every device, and is the form of this name.
        triton: `"module:function"`, the formula's Triton implementation, which then serves CUDA
            tensors: a `@triton.jit` function of the target, three parameters and the numbers that
            gives the value and its derivative in each parameter. Imported when it is first needed.

    Raises:
        ValueError: the library has a likelihood of this name.

    Example:
        >>> from dataclasses import dataclass, fields
        >>> import torch, vaefast as vf
        >>> def rayleigh(x, params, numbers):
        ...     (sigma,) = params
        ...     return 0.5 * (x / sigma) ** 2 + 2 * torch.log(sigma) - torch.log(x)
        >>> @vf.likelihoods.register("rayleigh", rayleigh)
        ... @dataclass(frozen=True, eq=False)
        ... class Rayleigh(vf.likelihoods.Likelihood):
        ...     param_names = ("sigma",)
        >>> float(vf.nll(torch.ones(2, 3), torch.ones(2, 3), "rayleigh"))
        1.5
    """
    known = _registry.get(name) or _rows.get(name)
    if known is not None and known.__module__.startswith(__package__):
        raise ValueError(f"vaefast has a likelihood named {name!r}; take another name")
    if formula is not None:
        if name in FORMULAS and name not in backends.USER_FORMS:
            raise ValueError(f"vaefast has a formula named {name!r}; take another name")
        FORMULAS[name] = formula
        backends.USER_FORMS[name] = triton

    def add(cls: L) -> L:
        cls.name = name
        _registry[name] = cls
        _defaults.pop(name, None)
        # A likelihood that has to be told something has no default.
        with contextlib.suppress(TypeError):
            _defaults[name] = cls()
        return cls

    return add


def load_plugins() -> None:
    """Imports what registers likelihoods of other packages: the entry points of the group
    `vaefast.likelihoods`, and the modules named in VAEFAST_PLUGINS, separated by commas."""
    for entry in importlib.metadata.entry_points(group="vaefast.likelihoods"):
        entry.load()
    for module in filter(None, os.environ.get("VAEFAST_PLUGINS", "").split(",")):
        importlib.import_module(module.strip())


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
        if likelihood not in _defaults:
            if likelihood not in _registry and likelihood not in _rows:
                load_plugins()
            _args.one_of("likelihood", likelihood, (*_registry, *_rows))
            if likelihood not in _defaults:
                raise ValueError(
                    f"likelihood {likelihood!r} has no default settings; pass an object"
                )
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


def check_scale(name: str, value: object, *words: str) -> float | Tensor | str:
    """`value` as a positive, finite number, a one-element tensor, which is differentiated, or one
    of `words`.

    Raises:
        TypeError, ValueError: it is none of them.
    """
    if isinstance(value, Tensor):
        _args.float_tensor(name, value)
        if value.numel() != 1:
            raise ValueError(f"{name} as a Tensor must be a scalar, got {list(value.shape)}")
        return value
    if isinstance(value, str):
        if value in words:
            return value
        also = "".join([f" or {word!r}" for word in words])
        raise TypeError(f"{name} must be a number, a scalar Tensor{also}, got {value!r}")
    return check_positive(name, value)


def check_positive(name: str, value: object) -> float:
    """`value` as a positive, finite number, or an error."""
    found = _args.number(name, value)
    if not 0 < found < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return found


def check_not_negative(name: str, value: object) -> float:
    """`value` as a finite number of at least 0, or an error."""
    found = _args.number(name, value)
    if not 0 <= found < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    return found


def keep(model: Likelihood, **checked: object) -> None:
    """Puts checked values into fields of a likelihood, which is frozen."""
    for name, value in checked.items():
        if getattr(model, name) is not value:
            object.__setattr__(model, name, value)


def keep_levels(model: Likelihood, bits: int, low: float, high: float) -> None:
    """Checks these fields of `model`: 2 to 2^16 levels between `low` and a greater `high`."""
    bits = _args.integer("bits", bits)
    low, high = _args.number("low", low), _args.number("high", high)
    keep(model, bits=bits, low=low, high=high)
    if not 1 <= bits <= 16:
        raise ValueError(f"bits must be between 1 and 16, got {bits}")
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"low must be below high, both finite, got {low} and {high}")


def scalar_like(value: Tensor, params: Tensor, name: str) -> Tensor:
    """A learned scalar as a 0-dimensional tensor, on the parameters' device."""
    if value.device != params.device:
        raise ValueError(f"{name} must be on device {params.device}, got {value.device}")
    return value.reshape(())
