"""The registered operator of the elementwise likelihoods, and its autograd function.

The gradient is made in the forward pass, beside the loss: both inputs are read once. Only where
the upstream gradient is per element (unless the likelihood is dear), or falls on a learned scalar
per sample, is it made anew in the backward pass, with the upstream gradient as the weight.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import backends
from .._args import compute_dtype, grad_needed, stored_dtype
from .._explain import declined, served
from .._torch import apply_of, keeps_graph
from ..backends._options import NllOptions
from ..backends.reference import nll as reference
from ..backends.reference.likelihoods import LOCATION
from ..likelihoods import Likelihood, Params
from . import _plans
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
from ._plans import recording
from ._register import Operator, direct, settled

# What is beside params and target: mask, weight, state, and of a sparse target (whose values the
# target then is) row starts and columns; () for none of them.
Others = tuple[Tensor | None, ...]


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
        loss = _operator.call(backend, numbers, *tensors, options, [False] * len(params))[0]
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


class Unplanned(NamedTuple):
    """A call that has no plan: by a backend that makes none, or by torch's dispatcher."""

    options: NllOptions
    backend: str
    casts: bool = True

    def forward(
        self, params: tuple[Tensor, ...], target: Tensor, others: Others, need: Sequence[bool]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """As a plan's."""
        mask, weight, state, starts, columns, numbers = others
        sparse = [t for t in (starts, columns) if t is not None]
        wanted = [*need] or [False] * len(params)
        call = ([*params], target, mask, weight, state, sparse, self.options, wanted)
        loss, *grads = _operator.call(self.backend, numbers, *call)
        found = iter(grads)
        return loss, [next(found) if w else None for w in wanted]


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
        found = iter(_operator.call(backend, numbers, *call)[1:])
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


def _wide_enough(
    params: tuple[Tensor, ...], target: Tensor, options: NllOptions
) -> tuple[Tensor, ...]:
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


def _fake(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    sparse: Sequence[Tensor],
    options: NllOptions,
    need: Sequence[bool],
) -> list[Tensor]:
    first = params[0]
    return [
        target.new_empty(options.loss_shape(first.shape), dtype=compute_dtype(*params)),
        *(
            p.new_empty(p.shape, dtype=stored_dtype(p.dtype))
            if index != options.scalar
            else p.new_empty(first.shape[: options.lead], dtype=compute_dtype(*params))
            for index, (p, wanted) in enumerate(zip(params, need, strict=True))
            if wanted
        ),
    ]


_operator = Operator(
    "nll",
    "Tensor[] params, Tensor target, Tensor? mask, Tensor? weight, Tensor? state, Tensor[] sparse",
    NllOptions,
    "Tensor[]",
    _fake,
    also="bool[] need",
)
