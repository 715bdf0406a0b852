"""The registered operator of beta-TCVAE's terms, and its autograd function.

The forward pass keeps one sum per point and one per point and dimension; the backward pass makes
the pairs anew from them, tile by tile.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import grad_needed
from .._torch import apply_of
from ..backends._options import Weighing
from ..backends.reference import tc_terms as reference
from . import _plans
from ._autograd import by_plain_pytorch, by_reference, distinct, keep, kept, reference_grads
from ._register import Operator


def run(
    z: Tensor, mu: Tensor, logvar: Tensor, weighing: Weighing, key: Hashable | None = None
) -> Tensor:
    """mi, tc and dim_kl `[3, B]` of z `[B, D]` under mu, logvar `[M, D]`, all of one dtype. `key`:
    what the call's plan may be kept under."""
    backend = backends.select(z.device, "tc_terms", dtype=z.dtype)
    if by_plain_pytorch("tc_terms", backend, like=z):
        return reference.tc_terms(z, mu, logvar, weighing)
    tensors = (z, mu, logvar)
    plan, numbers = _plans.settings_of("tc_terms", backend, tensors, (weighing,), key)
    if plan.planned:
        return run_found(plan, *tensors)
    if grad_needed(*tensors):
        terms: Tensor = _TcTermsFunction.apply(*distinct(plan, *tensors, numbers))
    else:
        terms = plan.run(_forward, tensors, numbers)[0]
    return terms


def run_found(plan: _plans.Settings, z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """As `run`, by a plan."""
    if grad_needed(z, mu, logvar):
        terms: Tensor = _apply(plan, z, mu, logvar, None)
    else:
        terms = plan.run(_forward, (z, mu, logvar))[0]
    return terms


class _TcTermsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: Any, z: Tensor, mu: Tensor, logvar: Tensor, numbers: Tensor | None
    ) -> Tensor:
        terms: Tensor
        terms, joint, marginals = plan.run(_forward, (z, mu, logvar), numbers)
        keep(ctx, (z, mu, logvar, numbers), (joint, marginals))
        ctx.plan = plan
        return terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (*saved, numbers), sums, _ = kept(ctx, 4)
        (weighing,), need = ctx.plan.options, ctx.needs_input_grad[1:4]
        if by_reference(upstream):
            grads = reference_grads(
                lambda z, mu, logvar: (reference.tc_terms(z, mu, logvar, weighing),),
                saved,
                need,
                (upstream,),
            )
            return (None, *grads, None)
        made = _backward.call(ctx.plan.backend, numbers, upstream, *saved, *sums, weighing)
        return (None, *[g if n else None for g, n in zip(made, need, strict=True)], None)


_apply = apply_of(_TcTermsFunction)


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    z = args[0]
    return (
        z.new_empty((3, z.shape[0])),
        z.new_empty(z.shape[0], dtype=torch.float64),
        z.new_empty(z.shape),
    )


def _backward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    z, mu, logvar = args[1:4]
    return z.new_empty(z.shape), mu.new_empty(mu.shape), logvar.new_empty(logvar.shape)


_TENSORS = "Tensor z, Tensor mu, Tensor logvar"
_forward = Operator("tc_terms", _TENSORS, Weighing, "(Tensor, Tensor, Tensor)", _forward_fake)
_backward = Operator(
    "tc_terms_backward",
    f"Tensor upstream, {_TENSORS}, Tensor joint, Tensor marginals",
    Weighing,
    "(Tensor, Tensor, Tensor)",
    _backward_fake,
    module="tc_terms",
)
