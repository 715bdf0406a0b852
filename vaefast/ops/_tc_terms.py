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
from ._autograd import by_reference, direct, needs_reference, reference_grads

_lib = torch.library.Library("vaefast", "FRAGMENT")
_SETTINGS = "float log_weight, int first, float own, float stratum, str backend"
_lib.define(
    f"tc_terms(Tensor z, Tensor mu, Tensor logvar, {_SETTINGS}) -> (Tensor, Tensor, Tensor)"
)
_lib.define(
    "tc_terms_backward(Tensor upstream, Tensor z, Tensor mu, Tensor logvar, Tensor joint, "
    f"Tensor marginals, {_SETTINGS}) -> (Tensor, Tensor, Tensor)"
)


def run(z: Tensor, mu: Tensor, logvar: Tensor, weighing: Weighing) -> Tensor:
    """mi, tc and dim_kl `[3, B]` of z `[B, D]` under mu, logvar `[M, D]`, all of one dtype."""
    backend = backends.select(z.device)
    if backend == "reference" or needs_reference() or not z.numel():
        return reference.tc_terms(z, mu, logvar, weighing)
    if grad_needed(z, mu, logvar):
        terms: Tensor = _TCTerms.apply(z, mu, logvar, weighing, backend)
        return terms
    return _call(z, mu, logvar, weighing, backend)[0]


class _TCTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, mu: Tensor, logvar: Tensor, weighing: Weighing, backend: str
    ) -> Tensor:
        terms, joint, marginals = _call(z, mu, logvar, weighing, backend)
        ctx.save_for_backward(z, mu, logvar, joint, marginals)
        ctx.weighing, ctx.backend = weighing, backend
        return terms

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        saved, weighing = ctx.saved_tensors, ctx.weighing
        need = ctx.needs_input_grad[:3]
        if by_reference(upstream):
            grads = reference_grads(
                lambda z, mu, logvar: (reference.tc_terms(z, mu, logvar, weighing),),
                saved[:3],
                need,
                (upstream,),
            )
            return (*grads, None, None)
        if direct(upstream, *saved):
            made = _backward(upstream, *saved, *weighing, ctx.backend)
        else:
            made = torch.ops.vaefast.tc_terms_backward(upstream, *saved, *weighing, ctx.backend)
        return (*[g if n else None for g, n in zip(made, need, strict=True)], None, None)


def _call(
    z: Tensor, mu: Tensor, logvar: Tensor, weighing: Weighing, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor]
    if direct(z, mu, logvar):
        result = _forward(z, mu, logvar, *weighing, backend)
    else:
        result = torch.ops.vaefast.tc_terms(z, mu, logvar, *weighing, backend)
    return result


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    module = backends.load(args[-1], "tc_terms")
    result: tuple[Tensor, Tensor, Tensor] = module.tc_terms(*args[:3], Weighing(*args[3:7]))
    return result


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    module = backends.load(args[-1], "tc_terms")
    grads: tuple[Tensor, Tensor, Tensor] = module.tc_terms_backward(
        *args[:6], Weighing(*args[6:10])
    )
    return grads


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


_lib.impl("tc_terms", _forward, "CompositeExplicitAutograd")
_lib.impl("tc_terms_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vaefast::tc_terms", _forward_fake, lib=_lib)
torch.library.register_fake("vaefast::tc_terms_backward", _backward_fake, lib=_lib)
