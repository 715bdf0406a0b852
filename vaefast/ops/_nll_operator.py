"""The registered operator of the elementwise likelihoods, also called without a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .._args import compute_dtype, stored_dtype
from ..backends._options import NllOptions
from ._register import Operator

# What is beside params and target: mask, weight, state, and of a sparse target (whose values the
# target then is) row starts and columns; () for none of them.
Others = tuple[Tensor | None, ...]


def _fake(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    sparse: Sequence[Tensor],
    options: NllOptions,
    need: Sequence[bool],
) -> list[Tensor]:
    first = params[0]
    return [
        target.new_empty(options.loss_shape(first.shape), dtype=compute_dtype(*params)),
        *(
            p.new_empty(p.shape, dtype=stored_dtype(p.dtype))
            if index != options.scalar
            else p.new_empty(first.shape[: options.lead], dtype=compute_dtype(*params))
            for index, (p, wanted) in enumerate(zip(params, need, strict=True))
            if wanted
        ),
    ]


operator = Operator(
    "nll",
    "Tensor[] params, Tensor target, Tensor? mask, Tensor? weight, Tensor? state, Tensor[] sparse",
    NllOptions,
    "Tensor[]",
    _fake,
    also="bool[] need",
)


class Unplanned(NamedTuple):
    """A call that has no plan: by a backend that makes none, or by torch's dispatcher."""

    options: NllOptions
    backend: str
    casts: bool = True

    def forward(
        self, params: tuple[Tensor, ...], target: Tensor, others: Others, need: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """As a plan's."""
        mask, weight, state, starts, columns, numbers = others
        sparse = [t for t in (starts, columns) if t is not None]
        wanted = [*need] or [False] * len(params)
        call = ([*params], target, mask, weight, state, sparse, self.options, wanted)
        loss, *grads = operator.call(self.backend, numbers, *call)
        found = iter(grads)
        return loss, [next(found) if w else None for w in wanted]
