"""What a random call is made of: its dimensions, operands, memory layouts and values.

A case holds no data and no shapes but sizes by name, so that it can be shrunk: the data follow
from its seed, the shapes from `dims`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]

# Calls of a case, each with fresh data: what is prepared at the first serves from the second on.
CALLS = 3

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17)
# The odd ones: a vector and its tail, many rows, a row of more than one block.
LARGE = (41, 64, 130, 401)


class Layout(NamedTuple):
    """From the shape to that of the storage, and from the storage to the operand.

    `fits` says of which shapes; `code` is the view as a script has it, of the storage `s`.
    """

    storage: Callable[[Shape], Shape]
    view: Callable[[Tensor, Shape], Tensor]
    code: str
    fits: Callable[[Shape], bool] = lambda s: len(s) > 0


def _swap(shape: Shape, a: int, b: int) -> Shape:
    dims = list(shape)
    dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


def _count(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


LAYOUTS: dict[str, Layout] = {
    "dense": Layout(lambda n: n, lambda s, n: s, "s", lambda n: True),
    "first half": Layout(
        lambda n: (*n[:-1], 2 * n[-1]), lambda s, n: s[..., : n[-1]], "s[..., :{n}[-1]]"
    ),
    "second half": Layout(
        lambda n: (*n[:-1], 2 * n[-1]), lambda s, n: s[..., n[-1] :], "s[..., {n}[-1]:]"
    ),
    "slice of a row": Layout(
        lambda n: (*n[:-1], n[-1] + 3),
        lambda s, n: s[..., 1 : 1 + n[-1]],
        "s[..., 1 : 1 + {n}[-1]]",
    ),
    "column": Layout(lambda n: (*n, 3), lambda s, n: s[..., 1], "s[..., 1]"),
    "transposed": Layout(
        lambda n: _swap(n, 0, -1), lambda s, n: s.transpose(0, -1), "s.transpose(0, -1)",
        lambda n: len(n) > 1,
    ),
    "first two swapped": Layout(
        lambda n: _swap(n, 0, 1), lambda s, n: s.transpose(0, 1), "s.transpose(0, 1)",
        lambda n: len(n) > 2,
    ),
    "channels last": Layout(
        lambda n: (n[0], *n[2:], n[1]),
        lambda s, n: s.movedim(-1, 1),
        "s.movedim(-1, 1)",
        lambda n: len(n) > 2,
    ),
    "expanded batch": Layout(
        lambda n: (1, *n[1:]), lambda s, n: s.expand(n), "s.expand({n})", lambda n: n[:1] > (1,)
    ),
    "expanded row": Layout(
        lambda n: (*n[:-1], 1), lambda s, n: s.expand(n), "s.expand({n})", lambda n: n[-1:] > (1,)
    ),
    "one number": Layout(lambda n: (), lambda s, n: s.expand(n), "s.expand({n})"),
    "unaligned": Layout(
        lambda n: (_count(n) + 1,), lambda s, n: s[1:].view(n), "s[1:].view({n})"
    ),
    "every second row": Layout(lambda n: (2 * n[0], *n[1:]), lambda s, n: s[::2], "s[::2]"),
    "second half of the batch": Layout(
        lambda n: (2 * n[0], *n[1:]), lambda s, n: s[n[0] :], "s[{n}[0]:]"
    ),
    "windows": Layout(
        lambda n: (n[0] + n[1] - 1,),
        lambda s, n: s.unfold(0, n[1], 1),
        "s.unfold(0, {n}[1], 1)",
        lambda n: len(n) == 2 and min(n) > 0,
    ),
    "negated": Layout(
        lambda n: n, lambda s, n: torch._neg_view(-s), "torch._neg_view(-s)", lambda n: True
    ),
}  # fmt: skip
# Of numbers that know no sign.
UNSIGNED = {"bits", "bytes", "mask"}


@dataclass
class Operand:
    """A tensor argument: sizes by name, dtype, layout, values, and whether a gradient is wanted."""

    shape: tuple[str | int, ...]
    kind: str
    dtype: torch.dtype = torch.float32
    layout: str = "dense"
    scale: float = 1.0
    grad: bool = False
    # False: the view of a tensor that takes the gradient, as a network's output is.
    leaf: bool = True

    def floating(self) -> bool:
        return self.dtype.is_floating_point


@dataclass
class Case:
    """A call of operator `op`, and how it is differentiated."""

    seed: int
    op: str
    dims: dict[str, int] = field(default_factory=dict)
    operands: dict[str, Operand] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    # A likelihood's name, its settings, and how many parameters it is given.
    model: tuple[str, dict[str, Any], int] | None = None
    noise: str = ""
    # Of each output: "ones", "dense", "expanded", "strided" or "none".
    upstream: tuple[str, ...] = ("ones",)
    backward: str = "plain"
    # Values on half-integers, where what has a kink meets it.
    grid: bool = False
    # Operands that are spoilt where the mask leaves them out, and "upstream".
    hidden: tuple[str, ...] = ()

    def shape(self, name: str) -> Shape:
        return self.sizes(self.operands[name].shape)

    def sizes(self, shape: tuple[str | int, ...]) -> Shape:
        return tuple(self.dims[d] if isinstance(d, str) else d for d in shape)

    def compute(self, *names: str) -> torch.dtype:
        """float64 if any of the operands is, else float32."""
        wide = any(self.operands[n].dtype == torch.float64 for n in names if n in self.operands)
        return torch.float64 if wide else torch.float32


def _values(kind: str, shape: Shape, grid: bool, scale: float, g: torch.Generator) -> Tensor:
    if kind in ("normal", "exp", "lower"):
        v = torch.randn(shape, generator=g, dtype=torch.float64)
        if scale != 1:
            v.mul_(scale)
        if grid:
            v = v.mul_(2).round_().mul_(0.5)
        if kind == "exp":
            return v.clamp_(-4, 4).exp_()
        return v
    u = torch.rand(shape, generator=g, dtype=torch.float64)
    if kind == "unit":
        return u
    if kind == "prob":
        return u.mul_(0.98).add_(0.01)
    if kind == "positive":
        return u.mul_(2)
    if kind == "bits":
        return u.round_()
    if kind == "mask":
        return u < 0.7
    if kind == "bytes":
        return u.mul_(256).floor_()
    if kind == "counts":
        return u.mul_(u).mul_(u).mul_(40).floor_()
    # "below N": class indices, and the levels of a pixel "levels N low high".
    name, *numbers = kind.split()
    if name == "below":
        return u.mul_(int(numbers[0])).floor_()
    top, low, high = float(numbers[0]) - 1, float(numbers[1]), float(numbers[2])
    return u.mul_(top).round_().mul_((high - low) / top).add_(low)


class Made(NamedTuple):
    """An operand of all calls: per call the tensor, and the values [CALLS, *shape] in float64."""

    tensors: list[Tensor]
    wide: Tensor


def make(case: Case, operand: Operand, g: torch.Generator) -> Made:
    """The data of an operand."""
    shape = case.sizes(operand.shape)
    layout = LAYOUTS[operand.layout]
    values = _values(operand.kind, (CALLS, *layout.storage(shape)), case.grid, operand.scale, g).to(
        operand.dtype
    )
    # Storages of their own, as a caller's are.
    tensors = [layout.view(s.clone(), shape) for s in values.unbind(0)]
    if operand.kind == "lower":
        # Of the tensor as it is seen, not as it is stored: elsewhere a diagonal is not positive.
        for t in tensors:
            t.diagonal(dim1=-2, dim2=-1).exp_()
    wide = torch.stack(tensors)
    if operand.dtype != torch.bool:
        # In bool only for masks.
        wide = wide.double()
    elif operand.kind != "mask":
        wide = wide.double()
    if operand.grad:
        if operand.leaf:
            tensors = [t.detach().requires_grad_() for t in tensors]
        else:
            # A view of a view, as autograd sees a network's output cut in two.
            tensors = [t.detach().requires_grad_().view_as(t) for t in tensors]
        wide = wide.requires_grad_()
    return Made(tensors, wide)


class Draw:
    """Random choices of a case."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.random = rng.random
        # One dtype for all operands in most cases, as users have it.
        self.dtype = rng.choices(DTYPES, (10, 4, 2, 2))[0]
        self.mixed = rng.random() < 0.1
        self.strided = rng.random() < 0.75
        self.wants_grad = rng.random() < 0.85
        self.empty = rng.random() < 0.02
        self.scale = rng.choices((1.0, 0.1, 3.0), (10, 1, 1))[0]

    def chance(self, p: float) -> bool:
        return self.random() < p

    def pick(self, *values: Any) -> Any:
        return self.rng.choice(values)

    def size(self, most: int = 401) -> int:
        if self.empty and self.random() < 0.3:
            return 0
        if self.random() < 0.08:
            size = self.rng.choice(LARGE)
            if size <= most:
                return size
        return self.rng.choice(SIZES)

    def sizes(self, case: Case, prefix: str, least: int = 0, most: int = 3) -> tuple[str, ...]:
        """Names of up to `most` dimensions, of at most 2,000 elements together with the batch."""
        count = self.rng.choices(range(least, most + 1), (1, 8, 3, 2, 1)[least : most + 1])[0]
        names = []
        total = case.dims.get("B", 1) * case.dims.get("K", 1)
        for i in range(count):
            size = self.size()
            if total * size > 2000:
                size = self.rng.choice((1, 2, 3))
            total *= max(size, 1)
            case.dims[f"{prefix}{i}"] = size
            names.append(f"{prefix}{i}")
        return tuple(names)

    def float_dtype(self) -> torch.dtype:
        return self.rng.choice(DTYPES) if self.mixed else self.dtype

    def layout(self, case: Case, shape: tuple[str | int, ...], signed: bool = True) -> str:
        if not self.strided or self.random() < 0.35:
            return "dense"
        sizes = case.sizes(shape)
        for _ in range(4):
            name = self.rng.choice(_LAYOUT_NAMES)
            if LAYOUTS[name].fits(sizes) and (signed or name != "negated"):
                return name
        return "dense"

    def operand(
        self,
        case: Case,
        shape: tuple[str | int, ...],
        kind: str = "normal",
        *,
        grad: float = 0.9,
        dtype: torch.dtype | None = None,
    ) -> Operand:
        """A floating-point operand."""
        chosen = dtype or self.float_dtype()
        layout = self.layout(case, shape, kind in ("normal", "exp", "lower", "unit", "positive"))
        if kind == "lower" and layout in ("windows", "one number", "expanded row"):
            layout = "dense"
        wants = self.wants_grad and self.random() < grad
        leaf = self.random() < 0.8
        return Operand(tuple(shape), kind, chosen, layout, self.scale, wants, leaf)

    def broadcast(self, shape: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """A shape that broadcasts to `shape` from the right."""
        how = self.rng.randrange(7)
        if how == 0:
            return shape[1:]
        if how == 1:
            return (1, *shape[1:])
        if how == 2:
            return ()
        if how == 3:
            return (*shape[:1], *[1] * (len(shape) - 1))
        if how == 4:
            return tuple(d if self.random() < 0.5 else 1 for d in shape)
        return shape

    def mask_and_weight(
        self, case: Case, shape: tuple[str | int, ...], weight: str = "weight", p: float = 0.25
    ) -> None:
        """A mask and a weight of elements `shape`, each absent in most cases."""
        for name, kind in (("mask", "mask"), (weight, "positive")):
            if self.random() >= p:
                continue
            some = shape[:1] if self.random() < 0.3 else self.broadcast(shape)
            if name == "mask":
                layout = self.layout(case, some, signed=False)
                case.operands[name] = Operand(some, kind, torch.bool, layout)
            else:
                case.operands[name] = self.operand(case, some, kind, grad=0.0)

    def noise(self, case: Case) -> None:
        case.noise = self.rng.choices(
            ("drawn", "seed", "state", "seeds", "states", "generator", "generators", "noise"),
            (8, 4, 3, 1, 1, 1, 1, 3),
        )[0]
        if self.random() < 0.15:
            case.settings["offset"] = self.pick(1, 4, 5, 1234567, 2**34 + 2)

    def posterior(self, case: Case, min_std: bool = True) -> str:
        """param, min_std and clamp; returns what values the scale has."""
        param = self.rng.choices(("logvar", "log_std", "std", "var", "softplus"), (6, 1, 1, 1, 1))[
            0
        ]
        if param != "logvar":
            case.settings["param"] = param
        if param == "softplus" and self.random() < 0.5:
            case.settings["min_std"] = 0.1
        if self.random() < 0.3:
            if param in ("std", "var"):
                clamp = self.pick((0.25, 2.0), ("soft", 0.125, 3.0))
            else:
                clamp = self.pick((-1.0, 1.0), (-30.0, 20.0), "soft", ("soft", -3.0, 2.0))
            case.settings["clamp"] = clamp
        return "exp" if param in ("std", "var") else "normal"

    def differentiate(self, case: Case, outputs: int) -> None:
        ways = ("ones", "dense", "expanded", "strided", "none")
        upstream = [self.rng.choices(ways, (3, 4, 2, 1, 1))[0] for _ in range(outputs)]
        if all(u == "none" for u in upstream):
            upstream[0] = "dense"
        case.upstream = tuple(upstream)
        case.backward = self.rng.choices(
            ("plain", "twice", "hooks", "checkpoint", "accumulate"), (14, 2, 3, 1, 1)
        )[0]
        if case.backward == "checkpoint" and case.noise.startswith("generator"):
            # It sets the default generator back, no other.
            case.backward = "plain"
        case.grid = self.random() < 0.06


_LAYOUT_NAMES = tuple(LAYOUTS)
