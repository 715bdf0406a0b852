"""The elementwise likelihoods: which way a call goes, and their autograd function.

The gradient is made in the forward pass, beside the loss: both inputs are read once. Only where
the upstream gradient is per element (unless the likelihood is dear), or falls on a learned scalar
per sample, is it made anew in the backward pass, with the upstream gradient as the weight.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import backends
from .._args import grad_needed
from .._explain import declined, served
from .._torch import apply_of
from ..backends._options import NllOptions
from ..backends.reference import nll as reference
from ..backends.reference.likelihoods import LOCATION
from ..likelihoods import Likelihood, Params
from . import _plans
from ._autograd import (
    by_plain_pytorch,
    distinct,
    keep,
    kept,
    needs_reference,
)
from ._memory_order import inverse, memory_order, ordered
from ._nll_backward import as_made, gradients, wanted_of
from ._nll_operator import Others, Unplanned, operator
from ._plans import recording
from ._register import direct, settled


def find(
    params: Params,
    target: Tensor,
    model: Likelihood,
    reduction: str,
    graded: bool,
    beside: Others = (),
) -> tuple[tuple[Tensor, ...], Hashable | None, Any]:
    """The parameters, a learned scalar of the likelihood among them; what to keep the call's plan
    under; and the one that is kept there. `graded`: the target asks for a gradient. `beside`: mask
    and weight, () for neither.

    A likelihood made anew at every step is the one before if its settings are.
    """
    if is_dynamo_compiling():
        return (), None, None
    tensors = params if isinstance(params, tuple) else (params,)
    settings = [type(model), reduction, graded]
    for value in model.__dict__.values():
        if isinstance(value, Tensor):
            tensors = (*tensors, value)
            value = None
        settings.append(value)
    return tensors, *_plans.find((*tensors, target, *beside), tuple(settings))


def are_taken(given: Sequence[Tensor], taken: Sequence[Tensor], scalar: int | None) -> bool:
    """Whether the tensors that `find` was given are those that the kernel takes, but for a view of
    a scalar: then its plan is right for others like them."""
    if len(given) != len(taken):
        declined("learned")
        return False
    for index, (one, other) in enumerate(zip(given, taken, strict=True)):
        if one is other or (index == scalar and one.dim() == 0):
            continue
        if index == scalar:
            declined("learned")
        else:
            declined("shape", " and ".join(str(list(t.shape)) for t in given))
        return False
    return True


def run(
    params: tuple[Tensor, ...],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    options: NllOptions,
    key: Hashable | None = None,
) -> Tensor:
    """-log p(target | params), reduced as `options` says, by the backend that serves. `key`: what
    the call's plan may be kept under."""
    backend = backends.select_form(target.device, options.form, "nll", params[0].dtype)
    # The kernels give a target's gradient where it is minus that in the location.
    located = options.form in LOCATION and state is None and target.layout == torch.strided
    # The noise that a target is drawn by belongs to its place as it is counted.
    dense = state is None and target.layout == torch.strided
    order = memory_order(params[0], options.lead) if dense else None
    constants = None if located else target, weight
    if order is not None and not needs_reference(*constants):
        if key is not None:
            declined("layout", "the parameters' dimensions lie in memory in another order")
        return _in_order(order, params, target, mask, weight, options)
    if key is not None and backend != "native":
        declined("backend", backend)
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
    if grad_needed(target):
        own, params = params, _wide_enough(params, target, options)
        if key is not None and params[0] is not own[0]:
            declined("dtype", own[0].dtype)
            key = None
    others: Others = (mask, weight, state, *(sparse or (None, None)))
    loss: Tensor
    if backend == "native" and direct(*params, target, *others):
        if all(t is None for t in others):
            others = ()
        plan = backends.load(backend, "nll").plan(params, target, others, options)
        _plans.keep(key, plan)
        served("nll", backend, "direct")
        return _planned(plan, params, target, others)
    options, numbers = settled(options)
    if grad_needed(*params, target):
        unplanned = Unplanned(options, backend)
        others = (*others, numbers)
        loss = _NllFunction.apply(*distinct(unplanned, len(others), target, *params, *others))
    else:
        tensors = (list(params), target, mask, weight, state, list(sparse))
        loss = operator.call(backend, numbers, *tensors, options, [False] * len(params))[0]
    return loss


def _planned(plan: Any, params: tuple[Tensor, ...], target: Tensor, others: Others) -> Tensor:
    """The loss by a plan."""
    loss: Tensor
    if grad_needed(*params, target):
        loss = _apply(plan, len(others), target, *params, *others)
    else:
        loss = plan.forward(params, target, others, ())[0]
    return loss


def run_found(
    plan: Any, params: tuple[Tensor, ...], target: Tensor, graded: bool, beside: Others = ()
) -> Tensor:
    """The loss by a plan that was found; `graded`: the target asks for a gradient. `beside`: as
    `find`'s."""
    loss: Tensor
    if beside:
        return _planned(plan, params, target, (*beside, None, None, None))
    if recording():
        if graded:
            loss = _apply(plan, None, target, *params)
            return loss
        for param in params:
            if param.requires_grad:
                loss = _apply(plan, None, target, *params)
                return loss
    loss = plan.forward(params, target, (), ())[0]
    return loss


def _in_order(
    order: tuple[int, ...],
    params: tuple[Tensor, ...],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    options: NllOptions,
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


class _NllFunction(torch.autograd.Function):
    """Of the target, the parameters and `rest` others, the last of which, where a compiler does
    not know all of the options' numbers, are these; None: the plan was found, and there are none.
    """

    @staticmethod
    def forward(ctx: Any, plan: Any, rest: int | None, target: Tensor, *tensors: Any) -> Tensor:
        graded, *need = ctx.needs_input_grad[2:]
        params, others = tensors, ()
        if rest:
            params, others, need = tensors[:-rest], tensors[-rest:], need[:-rest]
        wanted: Sequence[bool] = wanted_of(need, graded)
        options = plan.options
        ctx.stored = options.reduce != "elem" or (
            options.form in _DEAR
            and not isinstance(plan, Unplanned)
            and target.is_cpu
            and not (others and others[0] is not None)
        )
        loss: Tensor
        loss, grads = plan.forward(params, target, others, wanted if ctx.stored else ())
        ctx.plan, ctx.rest = plan, rest
        if rest is None:
            # What `keep` does: whoever found a plan has asked for hooks.
            ctx.save_for_backward(target, *tensors)
            ctx.made, ctx.kinds = grads, plan.kinds
        else:
            keep(ctx, (target, *tensors), grads)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        plan, rest = ctx.plan, ctx.rest
        graded, *need = ctx.needs_input_grad[2:]
        if not rest and not graded:
            taken = as_made(ctx, plan, upstream)
            if taken is not None:
                return None, None, None, *taken
        (target, *tensors), grads, overwrite = kept(ctx, 1 + len(need))
        params, others = tensors, tensors[:0]
        if rest:
            params, others, need = tensors[:-rest], tensors[-rest:], need[:-rest]
        made = grads if ctx.stored else None
        found = gradients(plan, params, target, others, need, graded, upstream, made, overwrite)
        return (None, None, *found, *(None,) * (rest or 0))


_apply = apply_of(_NllFunction)


def _wide_enough(
    params: tuple[Tensor, ...], target: Tensor, options: NllOptions
) -> tuple[Tensor, ...]:
    """The parameters, the location in float32 where its gradient in bfloat16 would not do for the
    target: one in more digits, or one that is a sum over several samples."""
    loc, *others = params
    if loc.dtype == torch.bfloat16 and (target.dtype != loc.dtype or options.lead == 2):
        loc = loc.float()
    return (loc, *others)


# Whose kernel takes longer than the passes over memory that another call of it would save: with
# their gradients stored, a loss per element is not computed twice.
_DEAR = ("negative_binomial", "zero_inflated_negative_binomial")
