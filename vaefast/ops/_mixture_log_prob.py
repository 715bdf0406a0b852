"""The registered operator of a mixture's log density, and its autograd function."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import grad_needed
from .._torch import apply_of
from ..backends.reference import mixture_log_prob as reference
from . import _plans
from ._autograd import by_plain_pytorch, by_reference, distinct, keep, kept, reference_grads
from ._register import Operator

_TENSORS = "Tensor z, Tensor mu, Tensor logvar, Tensor? log_weights"


def run(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    key: Hashable | None = None,
) -> Tensor:
    """The log density `[B]` of z `[B, D]` under mu, logvar `[K, D]`, all of one dtype. `key`: what
    the call's plan may be kept under."""
    tensors = (z, mu, logvar, log_weights)
    backend = backends.select(z.device, "mixture_log_prob", dtype=z.dtype)
    if by_plain_pytorch("mixture_log_prob", backend, like=mu if z.numel() else z):
        return reference.mixture_log_prob(*tensors)
    plan, _ = _plans.settings_of("mixture_log_prob", backend, tensors, (), key)
    if plan.planned:
        return run_found(plan, *tensors)
    if grad_needed(*tensors):
        values: Tensor = _MixtureLogProbFunction.apply(*distinct(plan, *tensors))
    else:
        values = plan.run(_forward, tensors)[0]
    return values


def run_found(
    plan: _plans.Settings, z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None
) -> Tensor:
    """As `run`, by a plan."""
    tensors = (z, mu, logvar, log_weights)
    if grad_needed(*tensors):
        values: Tensor = _apply(plan, *tensors)
    else:
        values = plan.run(_forward, tensors)[0]
    return values


class _MixtureLogProbFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Any, *tensors: Any) -> Tensor:
        values: Tensor
        values, joint = plan.run(_forward, tensors)
        keep(ctx, tensors, (joint,))
        ctx.plan = plan
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        tensors, (joint,), _ = kept(ctx, 4)
        need = ctx.needs_input_grad[1:5]
        if by_reference(upstream):
            grads = reference_grads(
                lambda *t: (reference.mixture_log_prob(*t),), tensors, need, (upstream,)
            )
            return (None, *grads)
        made = _backward.call(ctx.plan.backend, None, upstream, *tensors, joint)
        if len(made) < 4:
            made = [*made, None]
        return (None, *[grad if n else None for grad, n in zip(made, need, strict=True)])


_apply = apply_of(_MixtureLogProbFunction)


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    count = args[0].shape[0]
    return args[0].new_empty(count), args[0].new_empty(count, dtype=torch.float64)


def _backward_fake(*args: Any) -> list[Tensor]:
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in args[1:5]
        if t is not None
    ]


_forward = Operator("mixture_log_prob", _TENSORS, None, "(Tensor, Tensor)", _forward_fake)
_backward = Operator(
    "mixture_log_prob_backward",
    f"Tensor upstream, {_TENSORS}, Tensor joint",
    None,
    "Tensor[]",
    _backward_fake,
    module="mixture_log_prob",
)
