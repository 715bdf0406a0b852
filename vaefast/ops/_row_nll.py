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
from .._args import compute_dtype, grad_needed
from ..backends._options import RowNll
from ..backends.reference import row_nll as reference
from ._autograd import by_reference, direct, needs_reference, reference_grads, scaled

_lib = torch.library.Library("vaefast", "FRAGMENT")
_lib.define(
    "row_nll(Tensor params, Tensor[] target, Tensor? mask, Tensor? weight, str form, "
    "float[] numbers, int segments, str reduce, float factor, float grad_factor, bool need, "
    "str backend) -> Tensor[]"
)


def run(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNll,
) -> Tensor:
    """-log p(target | params [R, C, S]), reduced as `options` says."""
    backend = backends.select(params.device.type)
    if backend == "reference" or needs_reference(weight, *target) or not params.numel():
        return reference.row_nll(params, target, mask, weight, options)
    if grad_needed(params):
        loss: Tensor = _RowNLL.apply(params, mask, weight, options, backend, *target)
        return loss
    return _call(params, target, mask, weight, options, False, backend)[0]


class _RowNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        params: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        options: RowNll,
        backend: str,
        *target: Tensor,
    ) -> Tensor:
        # Folding 1/N, and then a loss scaler's 65536, loses a quarter of a float16 gradient.
        if params.dtype == torch.float16:
            options = options._replace(grad_factor=1.0)
        made = options.reduce != "elem"
        loss, *grads = _call(params, target, mask, weight, options, made, backend)
        ctx.save_for_backward(params, mask, weight, *target, *grads)
        ctx.options, ctx.backend, ctx.targets = options, backend, len(target)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        options, backend = ctx.options, ctx.backend
        params, mask, weight, *rest = ctx.saved_tensors
        target, grads = rest[: ctx.targets], rest[ctx.targets :]
        grad: Tensor | None
        if by_reference(upstream):
            (grad,) = reference_grads(
                lambda p: (reference.row_nll(p, target, mask, weight, options),),
                (params,),
                (True,),
                (upstream,),
            )
        elif options.reduce == "elem":
            grad = _weighed(params, target, mask, weight, options, upstream, backend)
        else:
            left = options.factor / options.grad_factor if options.factor else 0.0
            if options.reduce == "sample":
                upstream = upstream.repeat_interleave(options.segments).view(-1, 1, 1)
            grad = scaled(grads[0], upstream, left, backend)
            if mask is not None and options.reduce == "sample":
                # A stored 0 times a sample's infinite gradient is no number.
                kept = mask.repeat(len(grad) // len(mask), 1).unsqueeze(1)
                grad = torch.where(kept, grad, 0.0)
        return (grad, None, None, None, None, *[None] * ctx.targets)


def _weighed(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNll,
    upstream: Tensor,
    backend: str,
) -> Tensor:
    """The gradient for an upstream gradient per position."""
    options = options._replace(reduce="sum", grad_factor=options.factor, factor=1.0)
    rows = upstream.shape[0]
    if weight is not None:
        upstream = upstream * weight.repeat(rows // weight.shape[0], 1)
    # A weight per row of params: the target is repeated along with it.
    count = (target[0].shape[0] - 1) if len(target) == 3 else target[0].shape[0]
    if count in (0, rows):
        return _call(params, target, mask, upstream, options, True, backend)[1]
    parts = [
        _call(p, target, mask, u, options, True, backend)[1]
        for p, u in zip(params.split(count), upstream.split(count), strict=True)
    ]
    return torch.cat(parts)


def _call(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNll,
    need: bool,
    backend: str,
) -> list[Tensor]:
    result: list[Tensor]
    if direct(params, mask, weight, *target):
        module = backends.load(backend, "row_nll")
        result = module.row_nll(params, target, mask, weight, options, need)
    else:
        result = torch.ops.vaefast.row_nll(
            params, list(target), mask, weight, *options, need, backend
        )
    return result


def _forward(params: Tensor, target: Any, mask: Any, weight: Any, *settings: Any) -> list[Tensor]:
    form, numbers, *others, need, backend = settings
    module = backends.load(backend, "row_nll")
    options = RowNll(form, tuple(numbers), *others)
    result: list[Tensor] = module.row_nll(params, target, mask, weight, options, need)
    return result


def _forward_fake(
    params: Tensor, target: Any, mask: Any, weight: Any, *settings: Any
) -> list[Tensor]:
    *_, segments, reduce, _factor, _grad_factor, need, _backend = settings
    rows, _classes, inner = params.shape
    shape = {"elem": (rows, inner), "sample": (rows // segments,), "sum": ()}[reduce]
    loss = params.new_empty(shape, dtype=compute_dtype(params))
    grad = torch.empty_like(params, memory_format=torch.contiguous_format)
    return [loss, grad] if need else [loss]


_lib.impl("row_nll", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("vaefast::row_nll", _forward_fake, lib=_lib)
