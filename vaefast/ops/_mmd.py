"""The registered operator of the maximum mean discrepancy, and its autograd function.

The gradient is made in the forward pass, where a pair's distance is at hand.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import grad_needed
from .._torch import apply_of
from ..backends._options import MmdOptions
from ..backends.reference import mmd as reference
from . import _plans
from ._autograd import (
    by_plain_pytorch,
    by_reference,
    distinct,
    keep,
    kept,
    reference_grads,
    scaled,
)
from ._register import Operator


def run(x: Tensor, y: Tensor, options: MmdOptions, key: Hashable | None = None) -> Tensor:
    """The squared discrepancy of x `[N, D]` and y `[M, D]`, both of one dtype. `key`: what the
    call's plan may be kept under."""
    backend = backends.select(x.device, "mmd", dtype=x.dtype)
    if by_plain_pytorch("mmd", backend, like=x):
        return reference.mmd(x, y, options)
    plan, numbers = _plans.settings_of("mmd", backend, (x, y), (options,), key)
    if plan.planned:
        return run_found(plan, x, y)
    if grad_needed(x, y):
        value: Tensor = _MmdFunction.apply(*distinct(plan, x, y, numbers))
    else:
        value = _made(plan, x, y, numbers, [False, False])[0]
    return value


def run_found(plan: _plans.Settings, x: Tensor, y: Tensor) -> Tensor:
    """As `run`, by a plan."""
    if grad_needed(x, y):
        value: Tensor = _apply(plan, x, y, None)
    else:
        value = _made(plan, x, y, None, [False, False])[0]
    return value


def _made(
    plan: _plans.Settings, x: Tensor, y: Tensor, numbers: Tensor | None, need: list[bool]
) -> list[Tensor]:
    """The value, and the gradients that are needed."""
    found: list[Tensor]
    found = plan._replace(options=(*plan.options, need)).run(_operator, (x, y), numbers)
    return found


class _MmdFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Any, x: Tensor, y: Tensor, numbers: Tensor | None) -> Tensor:
        ctx.need = list(ctx.needs_input_grad[1:3])
        value, *grads = _made(plan, x, y, numbers, ctx.need)
        keep(ctx, (x, y), grads)
        ctx.plan = plan
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (x, y), made, overwrite = kept(ctx, 2)
        (options,), backend = ctx.plan.options, ctx.plan.backend
        if by_reference(upstream):
            grads = reference_grads(
                lambda x, y: (reference.mmd(x, y, options),), (x, y), ctx.need, (upstream,)
            )
            return (None, *grads, None)
        found = iter(made)
        grads = [scaled(next(found), upstream, backend, overwrite) if n else None for n in ctx.need]
        return (None, *grads, None)


_apply = apply_of(_MmdFunction)


def _fake(x: Tensor, y: Tensor, options: MmdOptions, need: list[bool]) -> list[Tensor]:
    grads = [t.new_empty(t.shape) for t, n in zip((x, y), need, strict=True) if n]
    return [x.new_empty(()), *grads]


_operator = Operator("mmd", "Tensor x, Tensor y", MmdOptions, "Tensor[]", _fake, also="bool[] need")
