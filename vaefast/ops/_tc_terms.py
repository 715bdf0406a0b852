"""The registered operator of beta-TCVAE's terms, and its autograd function.

The forward pass keeps one sum per point and one per point and dimension; the backward pass makes
the pairs anew from them, tile by tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import grad_needed
from ..backends._options import Weighing
from ..backends.reference import tc_terms as reference
from ._autograd import by_plain_pytorch, by_reference, distinct, keep, kept, reference_grads
from ._register import Operator, settled


def run(z: Tensor, mu: Tensor, logvar: Tensor, weighing: Weighing) -> Tensor:
    """mi, tc and dim_kl `[3, B]` of z `[B, D]` under mu, logvar `[M, D]`, all of one dtype."""
    backend = backends.select(z.device, "tc_terms", dtype=z.dtype)
    if by_plain_pytorch("tc_terms", backend, like=z):
        return reference.tc_terms(z, mu, logvar, weighing)
    weighing, numbers = settled(weighing)
    if grad_needed(z, mu, logvar):
        terms: Tensor = _TCTerms.apply(*distinct(z, mu, logvar, numbers, weighing, backend))
    else:
        terms = _forward.call(backend, numbers, z, mu, logvar, weighing)[0]
    return terms


class _TCTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        mu: Tensor,
        logvar: Tensor,
        numbers: Tensor | None,
        weighing: Weighing,
        backend: str,
    ) -> Tensor:
        terms: Tensor
        terms, joint, marginals = _forward.call(backend, numbers, z, mu, logvar, weighing)
        keep(ctx, (z, mu, logvar, joint, marginals, numbers))
        ctx.weighing, ctx.backend = weighing, backend
        return terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (*saved, numbers), _, _ = kept(ctx, 6)
        weighing, need = ctx.weighing, ctx.needs_input_grad[:3]
        if by_reference(upstream):
            grads = reference_grads(
                lambda z, mu, logvar: (reference.tc_terms(z, mu, logvar, weighing),),
                saved[:3],
                need,
                (upstream,),
            )
            return (*grads, None, None, None)
        made = _backward.call(ctx.backend, numbers, upstream, *saved, weighing)
        return (*[g if n else None for g, n in zip(made, need, strict=True)], None, None, None)


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
