"""A call that tracers, exporters and transforms are tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

D, X, K = 3, 5, 2
P = ("B", D)
Z = (K, "B", D)
Call = Callable[..., Any]


class TracedCall(NamedTuple):
    """`call` of the tensors that `tensors(batch)` makes; `batch` is the dimension of each that the
    batch is, None where it has none; the first `leaves` of them take a gradient."""

    call: Call
    tensors: Callable[[int], tuple[Tensor, ...]]
    batch: tuple[int | None, ...]
    leaves: int

    def wide(self, batch: int = 6) -> tuple[Tensor, ...]:
        """The tensors with what is floating in float64."""
        return tuple(t.double() if t.is_floating_point() else t for t in self.tensors(batch))


def traced(call: Call, *shapes: Any, leaves: int | None = None) -> TracedCall:
    """Of normal tensors; "B" in a shape is the batch."""

    def tensors(batch: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn([batch if d == "B" else d for d in shape]) for shape in shapes)

    at = tuple(shape.index("B") if "B" in shape else None for shape in shapes)
    return TracedCall(call, tensors, at, len(shapes) if leaves is None else leaves)
