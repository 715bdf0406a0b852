"""The registered operator of the likelihoods with a class dimension, and its autograd function.

As `_nll`: the gradient is made in the forward pass, beside the loss; only for an upstream gradient
per position is it made in the backward pass, with that as the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import compute_dtype, grad_needed, stored_dtype
from ..backends._options import RowNll
from ..backends.reference import row_nll as reference
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


def run(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNll,
) -> Tensor:
    """-log p(target | params [R, C, S]), reduced as `options` says."""
    backend = backends.select(params.device, "row_nll", options.form, params.dtype)
    if by_plain_pytorch("row_nll", backend, weight, *target, like=params):
        return reference.row_nll(params, target, mask, weight, options)
    options, numbers = settled(options)
    if grad_needed(params):
        loss: Tensor = _RowNLL.apply(
            *distinct(params, mask, weight, numbers, options, backend, *target)
        )
        return loss
    return _call(params, target, mask, weight, numbers, options, False, backend)[0]


class _RowNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        params: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        numbers: Tensor | None,
        options: RowNll,
        backend: str,
        *target: Tensor,
    ) -> Tensor:
        made = options.reduce != "elem"
        loss, *grads = _call(params, target, mask, weight, numbers, options, made, backend)
        keep(ctx, (params, mask, weight, numbers, *target), grads)
        ctx.options, ctx.backend, ctx.targets = options, backend, len(target)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        options, backend = ctx.options, ctx.backend
        saved, made, overwrite = kept(ctx, 4 + ctx.targets)
        params, mask, weight, numbers, *target = saved
        grad: Tensor | None
        if by_reference(upstream):
            (grad,) = reference_grads(
                lambda p: (reference.row_nll(p, target, mask, weight, options),),
                (params,),
                (True,),
                (upstream,),
            )
        elif options.reduce == "elem":
            grad = _weighed(params, target, mask, weight, numbers, options, upstream, backend)
            grad = grad.to(params.dtype)
        else:
            if options.reduce == "sample":
                upstream = upstream.repeat_interleave(options.segments).view(-1, 1, 1)
            grad = scaled(made[0], upstream, backend, overwrite, params.dtype)
            if mask is not None and options.reduce == "sample":
                # A stored 0 times a sample's infinite gradient is no number.
                any_kept = mask.repeat(len(grad) // len(mask), 1).unsqueeze(1)
                grad = torch.where(any_kept, grad, 0.0)
        return (grad, None, None, None, None, None, *[None] * ctx.targets)


def _weighed(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    numbers: Tensor | None,
    options: RowNll,
    upstream: Tensor,
    backend: str,
) -> Tensor:
    """The gradient for an upstream gradient per position."""
    options = options._replace(reduce="sum")
    rows = upstream.shape[0]
    if weight is not None:
        upstream = upstream * weight.repeat(rows // weight.shape[0], 1)
    # A weight per row of params: the target is repeated along with it.
    count = (target[0].shape[0] - 1) if len(target) == 3 else target[0].shape[0]
    if count in (0, rows):
        return _call(params, target, mask, upstream, numbers, options, True, backend)[1]
    parts = [
        _call(p, target, mask, u, numbers, options, True, backend)[1]
        for p, u in zip(params.split(count), upstream.split(count), strict=True)
    ]
    return torch.cat(parts)


def _call(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    numbers: Tensor | None,
    options: RowNll,
    need: bool,
    backend: str,
) -> list[Tensor]:
    """The loss and, where needed, the gradient."""
    call = (params, list(target), mask, weight, options, need)
    result: list[Tensor] = _operator.call(backend, numbers, *call)
    return result


def _fake(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNll,
    need: bool,
) -> list[Tensor]:
    rows, _classes, inner = params.shape
    shape = {"elem": (rows, inner), "sample": (rows // options.segments,), "sum": ()}
    loss = params.new_empty(shape[options.reduce], dtype=compute_dtype(params))
    if not need:
        return [loss]
    return [loss, params.new_empty(params.shape, dtype=stored_dtype(params.dtype))]


_operator = Operator(
    "row_nll",
    "Tensor params, Tensor[] target, Tensor? mask, Tensor? weight",
    RowNll,
    "Tensor[]",
    _fake,
    also="bool need",
)
