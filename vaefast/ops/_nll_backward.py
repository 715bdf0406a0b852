"""The gradients of the elementwise likelihoods: those that the forward pass made, or made anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch import keeps_graph
from ..backends._options import NllOptions
from ..backends.reference import nll as reference
from ._autograd import by_reference, reference_grads, scaled
from ._nll_operator import Unplanned, operator
from ._plans import recording
from ._register import direct


def as_made(ctx: Any, plan: Any, upstream: Tensor) -> Sequence[Tensor | None] | None:
    """The gradients as the forward pass made them, on a GPU times one number, where that is all
    there is to it: the end of most programs' graphs. `ctx` is of a function whose plan was found.
    """
    if (
        not ctx.made
        or plan.casts
        or upstream.dim()
        or recording()
        or keeps_graph()
        or not direct(upstream)
    ):
        return None
    # What a GPU's number is nobody here knows, the engine's own 1 neither: the kernel looks.
    here = upstream.is_cpu
    if here and upstream.item() != 1.0:
        return None
    # As autograd has it: those must not have changed since.
    _ = ctx.saved_tensors
    grads: Sequence[Tensor | None] = ctx.made
    ctx.made = ()
    if not here:
        return _times_number(grads, upstream, plan)
    scalar = plan.options.scalar
    if scalar >= 0:
        grads = [g.sum() if i == scalar and g is not None else g for i, g in enumerate(grads)]
    return grads


def _times_number(
    grads: Sequence[Tensor | None], upstream: Tensor, plan: Any
) -> Sequence[Tensor | None]:
    """Stored gradients times one number, in their own memory."""
    scalar = plan.options.scalar
    if scalar < 0:
        plan.scale(grads, upstream)
        return grads
    own = grads[scalar]
    others = [None if i == scalar else g for i, g in enumerate(grads)]
    plan.scale(others, upstream)
    others[scalar] = None if own is None else (own * upstream).sum()
    return others


def gradients(
    plan: Any,
    params: Sequence[Tensor],
    target: Tensor,
    others: Sequence[Tensor | None],
    need: Sequence[bool],
    graded: bool,
    upstream: Tensor,
    made: Sequence[Tensor | None] | None,
    overwrite: bool,
) -> Sequence[Tensor | None]:
    """The gradients in the target and the parameters; `made`: those for an upstream gradient of 1,
    if they were stored."""
    options, backend = plan.options, plan.backend
    full: list[Any] = [*others, *(None,) * (6 - len(others))]
    mask, weight, state, starts, columns, numbers = full
    sparse = [t for t in (starts, columns) if t is not None]
    if by_reference(upstream):
        x = densified(target, sparse, params[0].shape[options.lead :])
        return twice_differentiable(
            params, x, mask, weight, state, options, [graded, *need], upstream
        )
    wanted = wanted_of(need, graded)
    grads: list[Tensor | None]
    if options.reduce == "elem" and made is not None:
        grads = [None if g is None else _times(g, upstream, overwrite) for g in made]
    elif options.reduce == "elem":
        weight = upstream if weight is None else upstream * weight
        options = options._replace(reduce="sum")
        call = ([*params], target, mask, weight, state, sparse, options, [*wanted])
        found = iter(operator.call(backend, numbers, *call)[1:])
        grads = [next(found) if w else None for w in wanted]
        scalar = grads[options.scalar] if options.scalar >= 0 else None
        if scalar is not None:
            grads[options.scalar] = scalar.sum()
    else:
        assert made is not None
        if mask is not None and options.reduce == "sample" and options.scalar >= 0:
            shape = params[0].shape[options.lead - 1 :]
            any_kept = mask.expand(shape).reshape(shape[0], -1).any(1)
            upstream = torch.where(any_kept, upstream, 0.0)
        if (
            overwrite
            and not upstream.dim()
            and not isinstance(plan, Unplanned)
            and direct(upstream)
            and not upstream.is_cpu
        ):
            grads = [*_times_number(made, upstream, plan)]
        else:
            grads = [
                None if g is None else times_upstream(g, i, upstream, options, backend, overwrite)
                for i, g in enumerate(made)
            ]
        if mask is not None and options.reduce == "sample":
            # A stored 0 times a sample's infinite gradient is no number.
            grads = [
                g if g is None or index == options.scalar else torch.where(mask, g, 0.0)
                for index, g in enumerate(grads)
            ]
    to_target = None
    if graded:
        assert grads[0] is not None
        to_target = minus_to(target, grads[0], keeps=need[0])
    own = [
        g.to(p.dtype) if n and g is not None else None
        for g, n, p in zip(grads, need, params, strict=True)
    ]
    return to_target, *own


def wanted_of(need: Sequence[bool], to_target: bool) -> tuple[bool, ...]:
    """What the kernel has to make: the location's gradient is the target's too."""
    return (need[0] or to_target, *need[1:])


def minus_to(target: Tensor, grad: Tensor, keeps: bool) -> Tensor:
    """The target's gradient from the location's, which it takes the place of unless that is kept:
    summed over the samples that one target stands for."""
    if grad.dim() > target.dim():
        return grad.sum(0).neg_().to(target.dtype)
    return (grad.neg() if keeps else grad.neg_()).to(target.dtype)


def _times(grad: Tensor, upstream: Tensor, overwrite: bool) -> Tensor:
    """A stored gradient per element, times the one from upstream."""
    return grad.mul_(upstream) if overwrite else grad * upstream


def twice_differentiable(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    options: NllOptions,
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
    options: NllOptions,
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
