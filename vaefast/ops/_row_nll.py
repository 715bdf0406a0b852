"""The registered operator of the likelihoods with a class dimension, and its autograd function.

As `_nll`: the gradient is made in the forward pass, beside the loss; only for an upstream gradient
per position is it made in the backward pass, with that as the weight.
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
from .._torch import apply_of
from ..backends._options import RowNllOptions
from ..backends.reference import row_nll as reference
from ..likelihoods import Likelihood, Params
from . import _plans
from ._autograd import (
    by_plain_pytorch,
    by_reference,
    distinct,
    keep,
    kept,
    reference_grads,
    scaled,
)
from ._register import Operator, direct, settled


class Found(NamedTuple):
    """A plan for calls of the user's shapes, of which the kernel's are views.

    `loss`: the user's shape of it. `views`: the kernel's of params, mask, weight and target.
    """

    plan: Any
    loss: Sequence[int]
    views: Sequence[Sequence[int] | None]
    operator: str = "row_nll"


def find(
    params: Params,
    target: Tensor,
    beside: Sequence[Tensor | None],
    model: Likelihood,
    reduction: str,
) -> tuple[Hashable | None, Found | None]:
    """What to keep the call's plan under, and the one that is kept there.

    `beside`: mask and weight.
    """
    if is_dynamo_compiling() or not _plans.takes(*beside, target):
        return None, None
    tensors = params if isinstance(params, tuple) else (params,)
    settings = (type(model), reduction, *model.__dict__.values())
    return _plans.find((*tensors, target, *beside), settings)


def run_found(
    found: Found, params: Params, target: Tensor, mask: Tensor | None, weight: Tensor | None
) -> Tensor:
    """The loss by a plan that was found."""
    (own,) = params if isinstance(params, tuple) else (params,)
    loss: Tensor
    if grad_needed(own):
        loss = _apply(found.plan, found, own, mask, weight, None, target)
    else:
        loss = found.plan.forward(own, (target,), mask, weight, False)[0].view(found.loss)
    return loss


def run(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNllOptions,
    key: Hashable | None = None,
    given: Sequence[Tensor | None] = (),
    loss: Sequence[int] = (),
) -> Tensor:
    """-log p(target | params [R, C, S]), reduced as `options` says. `key`: what the call's plan may
    be kept under, for calls like the one `given` (params, mask, weight, target), whose loss has
    that shape."""
    backend = backends.select(params.device, "row_nll", options.form, params.dtype)
    if key is not None and backend != "native":
        declined("backend", backend)
    if by_plain_pytorch("row_nll", backend, weight, *target, like=params):
        return reference.row_nll(params, target, mask, weight, options)
    if backend == "native" and direct(params, *target, mask, weight):
        need = grad_needed(params)
        plan = backends.load(backend, "row_nll").plan(params, target, mask, weight, options, need)
        taken = (params, mask, weight, *target)
        if key is not None and (plan.copies or plan.casts):
            declined("copied")
        elif key is not None and not _are_views(given, taken):
            declined("layout", "the class dimension, or what stands beside the target, is moved")
        else:
            views = [None if t is None else t.shape for t in taken]
            _plans.keep(key, Found(plan, loss, views))
        served("row_nll", backend, "direct")
        if not need:
            result: Tensor = plan.forward(params, target, mask, weight, False)[0]
            return result
        result = _apply(plan, None, params, mask, weight, None, *target)
        return result
    options, numbers = settled(options)
    if grad_needed(params):
        unplanned = Unplanned(options, backend)
        result = _RowNllFunction.apply(
            *distinct(unplanned, None, params, mask, weight, numbers, *target)
        )
        return result
    return _call(params, target, mask, weight, numbers, options, False, backend)[0]


def _are_views(given: Sequence[Tensor | None], taken: Sequence[Tensor | None]) -> bool:
    """Whether the kernel reads the memory of what the user gave, in its order."""
    if len(given) != len(taken):
        return False
    for own, seen in zip(given, taken, strict=True):
        if own is None or seen is None:
            if own is not seen:
                return False
            continue
        if own.numel() != seen.numel() or own.dtype != seen.dtype:
            return False
        same = own.detach().reshape(seen.shape)
        if same.data_ptr() != seen.data_ptr() or same.stride() != seen.stride():
            return False
    return True


class Unplanned(NamedTuple):
    """A call that has no plan: by a backend that makes none, or by torch's dispatcher."""

    options: RowNllOptions
    backend: str
    casts: bool = True

    def forward(
        self,
        params: Tensor,
        target: Sequence[Tensor],
        mask: Tensor | None,
        weight: Tensor | None,
        need: bool,
        numbers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As a plan's; `numbers`: those that a compiler does not know of the options."""
        made = _call(params, target, mask, weight, numbers, self.options, need, self.backend)
        return made[0], made[1] if need else None


class _RowNllFunction(torch.autograd.Function):
    """`found`: the plan was found, and the tensors are the user's; None: they are the kernel's."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Any,
        found: Found | None,
        params: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        numbers: Tensor | None,
        *target: Tensor,
    ) -> Tensor:
        need = plan.options.reduce != "elem"
        more = () if numbers is None else (numbers,)
        loss: Tensor
        loss, grad = plan.forward(params, target, mask, weight, need, *more)
        keep(ctx, (params, mask, weight, numbers, *target), () if grad is None else (grad,))
        ctx.plan, ctx.found, ctx.targets = plan, found, len(target)
        return loss if found is None else loss.view(found.loss)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        plan, found = ctx.plan, ctx.found
        options, backend = plan.options, plan.backend
        saved, made, overwrite = kept(ctx, 4 + ctx.targets)
        params, mask, weight, numbers = saved[:4]
        target: Sequence[Any] = saved[4:]
        shape = params.shape
        if found is not None:
            views = zip((params, mask, weight, *target), found.views, strict=True)
            seen: list[Any] = [t if t is None else t.reshape(view) for t, view in views]
            params, mask, weight, *target = seen
            upstream = upstream.reshape(found.plan.loss)
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
            grad = made[0].view(params.shape)
            if options.reduce == "sample":
                upstream = upstream.repeat_interleave(options.segments).view(-1, 1, 1)
            grad = scaled(grad, upstream, backend, overwrite, params.dtype)
            if mask is not None and options.reduce == "sample":
                # A stored 0 times a sample's infinite gradient is no number.
                any_kept = mask.repeat(len(grad) // len(mask), 1).unsqueeze(1)
                grad = torch.where(any_kept, grad, 0.0)
        if found is not None and grad is not None:
            grad = grad.reshape(shape)
        return (None, None, grad, None, None, None, *[None] * ctx.targets)


_apply = apply_of(_RowNllFunction)


def _weighed(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    numbers: Tensor | None,
    options: RowNllOptions,
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
    options: RowNllOptions,
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
    options: RowNllOptions,
    need: bool,
) -> list[Tensor]:
    loss = params.new_empty(options.loss_shape(params.shape), dtype=compute_dtype(params))
    if not need:
        return [loss]
    return [loss, params.new_empty(params.shape, dtype=stored_dtype(params.dtype))]


_operator = Operator(
    "row_nll",
    "Tensor params, Tensor[] target, Tensor? mask, Tensor? weight",
    RowNllOptions,
    "Tensor[]",
    _fake,
    also="bool need",
)
