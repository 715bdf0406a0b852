"""The short way of a likelihood, and of the ELBO that it is a part of: see _recipes.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .._explain import after_the_call, declined
from .._torch import apply_of, keeps_graph
from ..backends._options import Nll
from ..backends.reference.likelihoods import LOCATION
from ..likelihoods import Likelihood, Params
from . import _nll, _recipes
from ._autograd import by_reference
from ._recipes import Recipe, keep, key_of, recording, serves_natively
from ._register import direct


def nll(params: Params, target: Tensor, model: Likelihood, reduction: str) -> Tensor | None:
    """The loss of dense parameters and target, or None where there is no recipe."""
    if is_dynamo_compiling():
        return None
    tensors, settings = _described(params, model, reduction)
    try:
        recipe = _recipes.kept.get(key_of((*tensors, target), settings))
    except TypeError:
        # A likelihood of the user's may hold anything.
        declined("settings", "it is not hashable")
        return None
    if recipe is None:
        return None
    loss: Tensor
    if recording():
        if target.requires_grad:
            options: Any = recipe.options
            if options.form not in LOCATION:
                declined("constant")
                return None
            loss = recipe.apply(recipe, target, *tensors)
            return loss
        for param in tensors:
            if param.requires_grad:
                loss = recipe.apply(recipe, target, *tensors)
                return loss
    loss, _ = recipe.small.forward(tensors, target, None)
    return loss


def _described(
    params: Params, model: Likelihood, reduction: str
) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
    """The parameters, a learned scalar of the likelihood among them, and what else a recipe depends
    on: an object made anew at every step is the one before if its settings are."""
    tensors = params if isinstance(params, tuple) else (params,)
    settings = [type(model), reduction]
    for value in model.__dict__.values():
        if isinstance(value, Tensor):
            tensors = (*tensors, value)
            value = None
        settings.append(value)
    return tensors, tuple(settings)


@after_the_call
def keep_nll(
    params: Params,
    target: Tensor,
    model: Likelihood,
    reduction: str,
    options: Nll,
    count: int,
) -> None:
    """Makes the recipe of a call that went the long way, if one can be made. `count`: how many
    parameters the form has."""
    tensors, settings = _described(params, model, reduction)
    key = key_of((*tensors, target), settings)
    if key is None or not serves_natively():
        return
    if options.reduce not in ("sample", "sum"):
        return declined("reduction")
    if options.lead != 1:
        return declined("argument", "params with a leading sample dimension")
    scalar = options.scalar
    last = len(tensors) - 1
    if len(tensors) != count or (scalar >= 0 and (scalar != last or tensors[scalar].dim() > 0)):
        return declined("learned")
    if not target.is_contiguous():
        return declined("layout", "target is not contiguous")
    from ..backends.native import small

    full = tensors if scalar < 0 else tensors[:scalar]
    if small.fits(*full, numbers=tensors[len(full) :]):
        made = small.SmallNll
        keep(key, lambda: Recipe("nll", made(tensors, target, options), options, _apply_nll))


class _SmallNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recipe: Recipe, target: Tensor, *params: Tensor) -> Tensor:
        loss: Tensor
        need = ctx.needs_input_grad[2:]
        if ctx.needs_input_grad[1]:
            need = _nll.wanted_of(need, True)
        loss, ctx.made = recipe.small.forward(params, target, need)
        ctx.save_for_backward(*params, target)
        ctx.recipe = recipe
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        if ctx.needs_input_grad[1]:
            return (None, *_with_targets(ctx, upstream))
        return (None, None, *_nll_gradients(ctx, upstream, 2))


def _with_targets(ctx: Any, upstream: Tensor) -> Sequence[Tensor | None]:
    """The target's gradient and those of the parameters."""
    need = ctx.needs_input_grad[1:]
    *params, target = ctx.saved_tensors
    if by_reference(upstream):
        options = ctx.recipe.options
        return _nll.twice_differentiable(params, target, None, None, None, options, need, upstream)
    location, *others = _nll_gradients(ctx, upstream, 2)
    assert location is not None
    to_target = _nll.minus_to(target, location, keeps=need[1])
    return (to_target, location if need[1] else None, *others)


def _nll_gradients(ctx: Any, upstream: Tensor, first: int) -> Sequence[Tensor | None]:
    """Those of the parameters, the first of which is the function's argument `first`."""
    *params, target = ctx.saved_tensors
    options, grads, keeps = ctx.recipe.options, ctx.made, keeps_graph()
    if not keeps:
        # Freed with the saved tensors, and not held when autograd takes the gradients over.
        ctx.made = None
    # The end of most programs' graphs: little is left to do.
    if (
        not recording()
        and not keeps
        and direct(upstream)
        and upstream.dim() == 0
        and upstream.item() == 1.0
    ):
        made: Sequence[Tensor | None] = grads
        scalar = options.scalar
        if scalar >= 0 and grads[scalar] is not None:
            made = (*grads[:scalar], grads[scalar].sum())
        return made
    if by_reference(upstream):
        need = (False, *ctx.needs_input_grad[first:])
        found = _nll.twice_differentiable(params, target, None, None, None, options, need, upstream)
        return found[1:]
    return [
        None
        if grad is None
        else _nll.times_upstream(grad, index, upstream, options, "native", not keeps)
        for index, grad in enumerate(grads)
    ]


def elbo(
    params: Params, target: Tensor, model: Likelihood, kl: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """(loss, nll, kl) of nll + beta mean(kl), means over the batch, the last two detached; None
    where there is no recipe."""
    if is_dynamo_compiling():
        return None
    tensors, settings = _described(params, model, "elbo")
    try:
        recipe = _recipes.kept.get(key_of((*tensors, target, kl), settings))
    except TypeError:
        declined("settings", "it is not hashable")
        return None
    if recipe is None:
        return None
    if not recording():
        nll, _ = recipe.small.forward(tensors, target, None)
        return _elbo_of(nll, kl, float(beta))
    if target.requires_grad:
        declined("constant")
        return None
    found: tuple[Tensor, Tensor, Tensor] = recipe.apply(recipe, float(beta), target, kl, *tensors)
    return found


def _elbo_of(nll: Tensor, kl: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = kl.mean()
    return torch.add(nll, mean, alpha=beta), nll, mean


@after_the_call
def keep_elbo(params: Params, target: Tensor, model: Likelihood, kl: Tensor) -> None:
    """Makes the recipe of a call that went the long way, if its likelihood left one."""
    tensors, settings = _described(params, model, "batchmean")
    try:
        found = _recipes.kept[key_of((*tensors, target), settings)]
    except (KeyError, TypeError):
        return
    _, settings = _described(params, model, "elbo")
    key = key_of((*tensors, target, kl), settings)
    if key is None:
        return
    if kl.dtype != found.small.loss.dtype:
        return declined("dtype", f"a KL in {kl.dtype}")
    keep(key, lambda: Recipe("elbo_loss", found.small, found.options, _apply_elbo))


class _SmallELBO(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, recipe: Recipe, beta: float, target: Tensor, kl: Tensor, *params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll, ctx.made = recipe.small.forward(params, target, ctx.needs_input_grad[4:])
        found = _elbo_of(nll, kl, beta)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*found[1:])
        ctx.save_for_backward(*params, target)
        ctx.recipe, ctx.beta, ctx.shape = recipe, beta, kl.shape
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> Any:
        if upstream is None:
            return (None,) * len(ctx.needs_input_grad)
        grad_kl = None
        if ctx.needs_input_grad[3]:
            grad_kl = (upstream * ctx.beta / ctx.shape.numel()).expand(ctx.shape)
        return (None, None, None, grad_kl, *_nll_gradients(ctx, upstream, 4))


_apply_nll = apply_of(_SmallNLL)
_apply_elbo = apply_of(_SmallELBO)
