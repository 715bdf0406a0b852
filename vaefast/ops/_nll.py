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
from ..backends.reference.likelihoods import LOCATION
from ._autograd import (
    by_plain_pytorch,
    by_reference,
    distinct,
    keep,
    kept,
    needs_reference,
    reference_grads,
    scaled,
)
from ._memory_order import inverse, memory_order, ordered
from ._register import Operator, direct, settled


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
    # The kernels give a target's gradient where it is minus that in the location.
    located = options.form in LOCATION and state is None and target.layout == torch.strided
    # The noise that a target is drawn by belongs to its place as it is counted.
    dense = state is None and target.layout == torch.strided
    order = memory_order(params[0], options.lead) if dense else None
    constants = None if located else target, weight
    if order is not None and not needs_reference(*constants):
        return _in_order(order, params, target, mask, weight, options)
    plain = by_plain_pytorch("nll", backend, *constants)
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
    if grad_needed(target):
        params = _wide_enough(params, target, options)
    loss: Tensor
    if grad_needed(*params, target):
        loss = _NLL.apply(
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
    else:
        tensors = (list(params), target, mask, weight, state, list(sparse))
        loss = _operator.call(backend, numbers, *tensors, options, [False] * len(params))[0]
    return loss


def _in_order(
    order: tuple[int, ...],
    params: tuple[Tensor, ...],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    options: Nll,
) -> Tensor:
    """`run` of parameters that lie in memory by this order of dimensions."""
    copies = options.lead - 1
    # The target's dimensions lack that of the samples.
    own = [d - copies for d in order[copies:]]
    loss = run(
        tuple(
            p if index == options.scalar else ordered(p, order) for index, p in enumerate(params)
        ),
        ordered(target, own),
        ordered(mask, own),
        ordered(weight, own),
        None,
        options,
    )
    return loss.permute(inverse(order)) if options.reduce == "elem" else loss


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
        wanted = wanted_of(need, ctx.needs_input_grad[0])
        ctx.stored = options.reduce != "elem" or (
            options.form in _DEAR
            and backend == "native"
            and target.is_cpu
            and mask is None
            and direct(*params, target, weight)
        )
        made = list(wanted) if ctx.stored else [False] * len(need)
        call = (list(params), target, mask, weight, state, list(sparse), options, made)
        loss: Tensor
        loss, *grads = _operator.call(backend, numbers, *call)
        keep(ctx, (target, mask, weight, state, numbers, *tensors), grads)
        ctx.options, ctx.backend, ctx.need, ctx.parts = options, backend, need, parts
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        need, options, backend, parts = ctx.need, ctx.options, ctx.backend, ctx.parts
        to_target = ctx.needs_input_grad[0]
        wanted = wanted_of(need, to_target)
        saved, made, overwrite = kept(ctx, 5 + parts + len(need))
        target, mask, weight, state, numbers = saved[:5]
        sparse, params = saved[5 : 5 + parts], saved[5 + parts :]
        grads: list[Tensor | None]
        if by_reference(upstream):
            x = densified(target, sparse, params[0].shape[options.lead :])
            to_x, *grads = twice_differentiable(
                params, x, mask, weight, state, options, [to_target, *need], upstream
            )
            return (to_x, *(None,) * (7 + parts), *grads)
        if options.reduce == "elem" and ctx.stored:
            found = iter(made)
            grads = [_times(next(found), upstream, overwrite) if w else None for w in wanted]
        elif options.reduce == "elem":
            weight = upstream if weight is None else upstream * weight
            options = options._replace(reduce="sum")
            call = (list(params), target, mask, weight, state, list(sparse), options, list(wanted))
            found = iter(_operator.call(backend, numbers, *call)[1:])
            grads = [next(found) if w else None for w in wanted]
            scalar = grads[options.scalar] if options.scalar >= 0 else None
            if scalar is not None:
                grads[options.scalar] = scalar.sum()
        else:
            if mask is not None and options.reduce == "sample" and options.scalar >= 0:
                shape = params[0].shape[options.lead - 1 :]
                any_kept = mask.expand(shape).reshape(shape[0], -1).any(1)
                upstream = torch.where(any_kept, upstream, 0.0)
            found = iter(made)
            grads = [
                times_upstream(next(found), i, upstream, options, backend, overwrite) if w else None
                for i, w in enumerate(wanted)
            ]
            if mask is not None and options.reduce == "sample":
                # A stored 0 times a sample's infinite gradient is no number.
                grads = [
                    g if g is None or index == options.scalar else torch.where(mask, g, 0.0)
                    for index, g in enumerate(grads)
                ]
        to_x = None
        if to_target:
            assert grads[0] is not None
            to_x = minus_to(target, grads[0], keeps=need[0])
        own = [
            g.to(p.dtype) if n and g is not None else None
            for g, n, p in zip(grads, need, params, strict=True)
        ]
        return (to_x, *(None,) * (7 + parts), *own)


def _wide_enough(params: tuple[Tensor, ...], target: Tensor, options: Nll) -> tuple[Tensor, ...]:
    """The parameters, the location in float32 where its gradient in bfloat16 would not do for the
    target: one in more digits, or one that is a sum over several samples."""
    loc, *others = params
    if loc.dtype == torch.bfloat16 and (target.dtype != loc.dtype or options.lead == 2):
        loc = loc.float()
    return (loc, *others)


def wanted_of(need: Sequence[bool], to_target: bool) -> tuple[bool, ...]:
    """What the kernel has to make: the location's gradient is the target's too."""
    return (need[0] or to_target, *need[1:])


def minus_to(target: Tensor, grad: Tensor, keeps: bool) -> Tensor:
    """The target's gradient from the location's, which it takes the place of unless that is kept:
    summed over the samples that one target stands for."""
    if grad.dim() > target.dim():
        return grad.sum(0).neg_().to(target.dtype)
    return (grad.neg() if keeps else grad.neg_()).to(target.dtype)


# Whose kernel takes longer than the passes over memory that another call of it would save: with
# their gradients stored, a loss per element is not computed twice.
_DEAR = ("negative_binomial", "zero_inflated_negative_binomial")


def _times(grad: Tensor, upstream: Tensor, overwrite: bool) -> Tensor:
    """A stored gradient per element, times the one from upstream."""
    return grad.mul_(upstream) if overwrite else grad * upstream


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
    """The gradients in the target and the parameters, by way of the reference."""
    return reference_grads(
        lambda x, *p: (reference.nll(p, x, mask, weight, state, options),),
        (target, *params),
        need,
        (upstream,),
    )


def times_upstream(
    grad: Tensor,
    index: int,
    upstream: Tensor,
    options: Nll,
    backend: str,
    overwrite: bool,
) -> Tensor:
    """A stored gradient, times what the forward pass could not know."""
    if index == options.scalar:
        return (grad * upstream).sum()
    if options.reduce == "sample":
        upstream = upstream.view(*upstream.shape, *([1] * (grad.dim() - upstream.dim())))
    return scaled(grad, upstream, backend, overwrite)


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
