"""The registered operator of the elementwise likelihoods, and its autograd function.

The gradient is made in the forward pass, beside the loss: both inputs are read once. Only where
the upstream gradient is per element (unless the likelihood is dear), or falls on a learned scalar
per sample, is it made anew in the backward pass, with the upstream gradient as the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import compute_dtype, grad_needed, stored_dtype
from ..backends._options import Nll
from ..backends.reference import nll as reference
from ._autograd import (
    by_reference,
    direct,
    distinct,
    keep,
    kept,
    needs_reference,
    reference_grads,
    scaled,
)
from ._register import Operator, settled


def run(
    params: tuple[Tensor, ...],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    options: Nll,
) -> Tensor:
    """-log p(target | params), reduced as `options` says, by the backend that serves."""
    backend = backends.select_form(target.device, options.form)
    plain = backend == "reference" or needs_reference(target, weight)
    sparse: tuple[Tensor, ...] = ()
    if target.layout == torch.sparse_csr:
        if plain or backend != "native" or not target.is_cpu:
            target = target.to_dense()
        else:
            sparse = target.crow_indices().long(), target.col_indices().long()
            target = target.values().contiguous()
    if plain:
        return reference.nll(params, target, mask, weight, state, options)
    options, numbers = settled(options)
    if grad_needed(*params):
        loss: Tensor = _NLL.apply(
            *distinct(
                target,
                mask,
                weight,
                state,
                numbers,
                options,
                backend,
                len(sparse),
                *sparse,
                *params,
            )
        )
        return loss
    need = [False] * len(params)
    return _call(params, target, mask, weight, state, sparse, numbers, options, need, backend)[0]


class _NLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        state: Tensor | None,
        numbers: Tensor | None,
        options: Nll,
        backend: str,
        parts: int,
        *tensors: Tensor,
    ) -> Tensor:
        sparse, params = tensors[:parts], tensors[parts:]
        need = list(ctx.needs_input_grad[8 + parts :])
        ctx.stored = options.reduce != "elem" or (
            options.form in _DEAR
            and backend == "native"
            and target.is_cpu
            and mask is None
            and direct(*params, target, weight)
        )
        made = need if ctx.stored else [False] * len(need)
        loss, *grads = _call(
            params, target, mask, weight, state, sparse, numbers, options, made, backend
        )
        keep(ctx, (target, mask, weight, state, numbers, *tensors), grads)
        ctx.options, ctx.backend, ctx.need, ctx.parts = options, backend, need, parts
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        need, options, backend, parts = ctx.need, ctx.options, ctx.backend, ctx.parts
        saved, made, overwrite = kept(ctx, 5 + parts + len(need))
        target, mask, weight, state, numbers = saved[:5]
        sparse, params = saved[5 : 5 + parts], saved[5 + parts :]
        grads: Sequence[Tensor | None]
        if by_reference(upstream):
            x = densified(target, sparse, params[0].shape[options.lead :])
            grads = twice_differentiable(params, x, mask, weight, state, options, need, upstream)
        elif options.reduce == "elem" and ctx.stored:
            found = iter(made)
            grads = [
                _times(next(found), upstream, params[index].dtype, overwrite) if wanted else None
                for index, wanted in enumerate(need)
            ]
        elif options.reduce == "elem":
            weight = upstream if weight is None else upstream * weight
            options = options._replace(reduce="sum")
            _, *grads = _call(
                params, target, mask, weight, state, sparse, numbers, options, need, backend
            )
            found = iter(grads)
            grads = [
                _in_dtype(next(found), index, params[index], options) if wanted else None
                for index, wanted in enumerate(need)
            ]
        else:
            if mask is not None and options.reduce == "sample" and options.scalar >= 0:
                shape = params[0].shape[options.lead - 1 :]
                any_kept = mask.expand(shape).reshape(shape[0], -1).any(1)
                upstream = torch.where(any_kept, upstream, 0.0)
            found = iter(made)
            grads = [
                times_upstream(next(found), i, params[i], upstream, options, backend, overwrite)
                if need[i]
                else None
                for i in range(len(need))
            ]
            if mask is not None and options.reduce == "sample":
                # A stored 0 times a sample's infinite gradient is no number.
                grads = [
                    g if g is None or index == options.scalar else torch.where(mask, g, 0.0)
                    for index, g in enumerate(grads)
                ]
        return (None,) * (8 + parts) + tuple(grads)


# Whose kernel takes longer than the passes over memory that another call of it would save: with
# their gradients stored, a loss per element is not computed twice.
_DEAR = ("negative_binomial", "zero_inflated_negative_binomial")


def _times(grad: Tensor, upstream: Tensor, dtype: torch.dtype, overwrite: bool) -> Tensor:
    """A stored gradient per element, times the one from upstream."""
    return (grad.mul_(upstream) if overwrite else grad * upstream).to(dtype)


def _in_dtype(grad: Tensor, index: int, param: Tensor, options: Nll) -> Tensor:
    return (grad.sum() if index == options.scalar else grad).to(param.dtype)


def twice_differentiable(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    options: Nll,
    need: Sequence[bool],
    upstream: Tensor,
) -> list[Tensor | None]:
    """The gradients by way of the reference."""
    return reference_grads(
        lambda *p: (reference.nll(p, target, mask, weight, state, options),),
        params,
        need,
        (upstream,),
    )


def times_upstream(
    grad: Tensor,
    index: int,
    param: Tensor,
    upstream: Tensor,
    options: Nll,
    backend: str,
    overwrite: bool,
) -> Tensor:
    """A stored gradient, times what the forward pass could not know."""
    if index == options.scalar:
        return (grad * upstream).sum().to(param.dtype)
    if options.reduce == "sample":
        upstream = upstream.view(*upstream.shape, *([1] * (grad.dim() - upstream.dim())))
    return scaled(grad, upstream, backend, overwrite, param.dtype)


def _call(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    sparse: Sequence[Tensor],
    numbers: Tensor | None,
    options: Nll,
    need: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    """The loss and the needed gradients."""
    call = (list(params), target, mask, weight, state, list(sparse), options, list(need))
    result: list[Tensor]
    if direct(*params, target, mask, weight, state):
        result = _operator.direct(backend, *call)
    else:
        result = _operator.routed(backend, numbers, *call)
    return result


def densified(values: Tensor, sparse: Sequence[Tensor], row: Sequence[int]) -> Tensor:
    """The target itself, or, where it is the values of a CSR matrix, that as a dense one."""
    if not sparse:
        return values
    starts, columns = sparse
    shape = (len(starts) - 1, *row)
    whole = torch.sparse_csr_tensor(
        starts, columns, values, shape, device=values.device, check_invariants=False
    )
    return whole.to_dense()


def _fake(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    sparse: Sequence[Tensor],
    options: Nll,
    need: Sequence[bool],
) -> list[Tensor]:
    first = params[0]
    return [
        target.new_empty(loss_shape(first.shape, options), dtype=compute_dtype(*params)),
        *(
            p.new_empty(p.shape, dtype=stored_dtype(p.dtype))
            if index != options.scalar
            else p.new_empty(first.shape[: options.lead], dtype=compute_dtype(*params))
            for index, (p, wanted) in enumerate(zip(params, need, strict=True))
            if wanted
        ),
    ]


def loss_shape(shape: Sequence[int], options: Nll) -> tuple[int, ...]:
    """Shape of the loss for parameters of `shape`."""
    if options.reduce == "elem":
        return tuple(shape)
    return tuple(shape[: options.lead]) if options.reduce == "sample" else ()


_operator = Operator(
    "nll",
    "Tensor[] params, Tensor target, Tensor? mask, Tensor? weight, Tensor? state, Tensor[] sparse",
    Nll,
    "Tensor[]",
    _fake,
    also="bool[] need",
)
