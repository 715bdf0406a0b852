"""Random cases: shapes, memory layouts, dtypes and settings, drawn from a fixed seed each."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = [
    *((5, 7), (3, 41), (2, 3, 5, 7), (1, 1271), (130, 20), (401,)),
    *((0, 4), (4, 0), (2, 0, 3), (3, 1, 5), (1,), (6, 8, 3, 3)),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, "mixed"]
PARAMS = ["logvar", "log_std", "std", "var", "softplus"]
REDUCTIONS = ["none", "sample", "batchmean", "sum", "mean", "dim"]


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def _half(t: Tensor, index: int) -> Tensor:
    whole = torch.cat([t, t], 1) if t.dim() > 1 else torch.cat([t, t])
    return whole.chunk(2, min(1, t.dim() - 1))[index] if t.numel() else t


# From dense values to an operand of the same shape with other strides.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "channels last": _channels_last,
    "first half of a row": lambda t: _half(t, 0),
    "second half of a row": lambda t: _half(t, 1),
    "expanded batch": lambda t: t[:1].expand_as(t),
    "expanded row": lambda t: t[..., :1].expand_as(t),
    "every second": lambda t: torch.stack([t, t], -1)[..., 0],
    "unaligned": lambda t: torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[
        1 if t.numel() else 0 :
    ].view(t.shape),
    "flipped middle": lambda t: (
        t.transpose(1, 2).contiguous().transpose(1, 2) if t.dim() > 2 else t
    ),
    "negated": lambda t: torch._neg_view(-t),
}


def broadcasts(shape: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    """A shape that broadcasts to `shape` from the right."""
    return rng.choice(
        [
            shape,
            shape[1:],
            (1, *shape[1:]),
            tuple(1 for _ in shape),
            (),
            (*shape[:1], *[1] * (len(shape) - 1)),
            tuple(s if rng.random() < 0.5 else 1 for s in shape),
        ]
    )


def uniform(shape: tuple[int, ...], rng: random.Random) -> Tensor:
    """Uniform numbers in float64, from `rng`."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def normal(shape: tuple[int, ...], rng: random.Random, scale: float = 1.0) -> Tensor:
    """Normal numbers in float64, from `rng`."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def pick_dtype(name: torch.dtype | str, rng: random.Random) -> torch.dtype:
    """The dtype, or any at random where it is `"mixed"`."""
    return rng.choice(DTYPES[:-1]) if isinstance(name, str) else name


def mask_and_weight(
    shape: tuple[int, ...], rng: random.Random, dtype: torch.dtype | str
) -> tuple[Tensor | None, Tensor | None]:
    """Each absent half of the time; else of a shape that broadcasts, or one per sample.

    A mask leaves something: what a mean over nothing is, is a test of its own.
    """

    def some() -> tuple[int, ...]:
        return rng.choice([broadcasts(shape, rng), shape[:1]])

    mask = uniform(some(), rng) < 0.7 if rng.random() < 0.5 else None
    if mask is not None and not mask.any():
        mask = ~mask
    weight = (2 * uniform(some(), rng)).to(pick_dtype(dtype, rng)) if rng.random() < 0.5 else None
    return mask, weight


@dataclass
class Operand:
    """Values and how they are laid out in memory."""

    values: Tensor
    layout: str
    needs_grad: bool

    def tensor(self, device: str) -> Tensor:
        """The operand on `device`, a leaf of that layout."""
        laid_out = LAYOUTS[self.layout](self.values.to(device)).detach()
        return laid_out.requires_grad_(self.needs_grad)

    def wide(self) -> Tensor:
        """The same values in float64."""
        return self.tensor("cpu").detach().double().clone().requires_grad_(self.needs_grad)


def operand(
    values: Tensor, dtype: torch.dtype | str, rng: random.Random, grad: float = 0.9
) -> Operand:
    """An operand of a random layout that needs a gradient with probability `grad`."""
    layout = rng.choice(list(LAYOUTS)) if values.dim() else "dense"
    return Operand(values.to(pick_dtype(dtype, rng)), layout, rng.random() < grad)


def scale_values(param: str, values: Tensor) -> Tensor:
    """Normal numbers as values that a scale of this `param` may have."""
    return values.exp() if param in ("std", "var") else values


def clamp_for(param: str, rng: random.Random) -> object:
    """A clamp that leaves the scale of this `param` valid."""
    if param in ("std", "var"):
        return rng.choice([None, None, (0.25, 2.0), ("soft", 0.125, 3.0)])
    return rng.choice([None, None, (-1.0, 1.0), (-30.0, 20.0), "soft", ("soft", -3.0, 2.0)])
