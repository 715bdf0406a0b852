"""The registered operator of the maximum mean discrepancy, and its autograd function.

The gradient is made in the forward pass, where a pair's distance is at hand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import grad_needed
from ..backends._options import Mmd
from ..backends.reference import mmd as reference
from ._autograd import (
    by_plain_pytorch,
    by_reference,
    distinct,
    keep,
    kept,
    reference_grads,
    scaled,
)
from ._register import Operator, settled


def run(x: Tensor, y: Tensor, options: Mmd) -> Tensor:
    """The squared discrepancy of x `[N, D]` and y `[M, D]`, both of one dtype."""
    backend = backends.select(x.device, "mmd", dtype=x.dtype)
    if by_plain_pytorch("mmd", backend, like=x):
        return reference.mmd(x, y, options)
    options, numbers = settled(options)
    if grad_needed(x, y):
        value: Tensor = _MMD.apply(*distinct(x, y, numbers, options, backend))
    else:
        value = _operator.call(backend, numbers, x, y, options, [False, False])[0]
    return value


class _MMD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, numbers: Tensor | None, options: Mmd, backend: str
    ) -> Tensor:
        ctx.need = list(ctx.needs_input_grad[:2])
        value: Tensor
        value, *grads = _operator.call(backend, numbers, x, y, options, ctx.need)
        keep(ctx, (x, y), grads)
        ctx.options, ctx.backend = options, backend
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (x, y), made, overwrite = kept(ctx, 2)
        if by_reference(upstream):
            grads = reference_grads(
                lambda x, y: (reference.mmd(x, y, ctx.options),), (x, y), ctx.need, (upstream,)
            )
            return (*grads, None, None, None)
        found = iter(made)
        grads = [
            scaled(next(found), upstream, ctx.backend, overwrite) if n else None for n in ctx.need
        ]
        return (*grads, None, None, None)


def _fake(x: Tensor, y: Tensor, options: Mmd, need: list[bool]) -> list[Tensor]:
    grads = [t.new_empty(t.shape) for t, n in zip((x, y), need, strict=True) if n]
    return [x.new_empty(()), *grads]


_operator = Operator("mmd", "Tensor x, Tensor y", Mmd, "Tensor[]", _fake, also="bool[] need")
