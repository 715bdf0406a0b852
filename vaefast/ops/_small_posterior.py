"""The short way of a posterior's sample and KL: see _recipes.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import random
from .._explain import after_the_call, declined
from .._torch import apply_of, keeps_graph
from ..backends._options import Posterior
from . import _recipes, _sample_kl
from ._recipes import Recipe, keep, key_of, recording, serves_natively
from ._register import direct


def sample(
    mu: Tensor,
    scale: Tensor,
    settings: tuple[object, ...],
    seed: random.Seed | None,
    generator: random.Generator | None,
) -> Any:
    """What the operator of these settings gives, a sample of a posterior, alone or with its KL to
    N(0, I), or None where there is no recipe."""
    if is_dynamo_compiling():
        return None
    try:
        recipe = _recipes.kept.get(key_of((mu, scale), settings))
    except TypeError:
        # A clamp may be a list.
        declined("settings", "it is not hashable")
        return None
    if recipe is None:
        return None
    recorded = recording() and mu.requires_grad
    if scale.requires_grad is not recorded and recording():
        declined("gradient")
        return None
    drawn = seed is None and generator is None
    if drawn:
        state = random.drawn(mu)
    elif _one_stream(seed, generator):
        state = random.make_state(mu, mu.shape[0], seed, generator)
    else:
        declined("noise")
        return None
    if recorded:
        return recipe.apply(mu, scale, state, drawn, recipe)
    return recipe.small.forward(mu, scale, state, drawn, None)


def _one_stream(seed: random.Seed | None, generator: random.Generator | None) -> bool:
    """False for one stream per sample. Asked before any generator is drawn from: the long way would
    draw again."""
    if generator is not None:
        return isinstance(generator, torch.Generator)
    return isinstance(seed, int) or (isinstance(seed, Tensor) and seed.dim() == 1)


@after_the_call
def keep_posterior(
    mu: Tensor, scale: Tensor, settings: tuple[object, ...], options: Posterior
) -> None:
    """Makes the recipe of a call, with a sample, of it or of the KL alone, that went the long way,
    if one can be made."""
    key = key_of((mu, scale), settings)
    if key is None or not serves_natively():
        return
    each = ("elem",) if options.num_samples < 0 else ()
    if options.reduce not in ("", "sample", "sum", *each):
        return declined("reduction")
    from ..backends.native import small

    if not small.fits(mu, scale):
        return
    kind: type[small.SmallKl | small.SmallSampleKl | small.SmallSample]
    if options.num_samples < 0:
        kind, apply = small.SmallKl, _apply_kl
    elif options.reduce:
        kind, apply = small.SmallSampleKl, _apply_sample_kl
    else:
        kind, apply = small.SmallSample, _apply_sample
    keep(key, lambda: Recipe("sample_kl", kind(mu, scale, options), options, apply))


class _SmallSampleKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, scale: Tensor, state: Tensor, drawn: bool, recipe: Recipe
    ) -> tuple[Tensor, Tensor]:
        small = recipe.small
        # Not saved by autograd, where a hook could come to hold it: the backward pass writes here.
        kept = ctx.kept = small.fresh(scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mu, scale, state)
        ctx.recipe = recipe
        result: tuple[Tensor, Tensor] = small.forward(mu, scale, state, drawn, kept)
        return result

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> Any:
        mu, scale, state = ctx.saved_tensors
        recipe, kept, keeps = ctx.recipe, ctx.kept, keeps_graph()
        if not keeps:
            ctx.kept = None
        strides = recipe.small.strides
        if (
            grad_z is not None
            and grad_kl is not None
            and not recording()
            and not keeps
            and mu.stride() == strides[0]
            and scale.stride() == strides[1]
            and direct(grad_z, grad_kl)
        ):
            # The upstream gradient of a sum is one number, expanded.
            step = 1 if grad_z.is_contiguous() else None if any(grad_z.stride()) else 0
            if step is not None:
                found = recipe.small.backward(grad_z, grad_kl, mu, scale, kept, step)
                return found, kept, None, None, None
        tensors = (mu, scale, None, None, None, None, state, None)
        need = [*ctx.needs_input_grad[:2], False, False]
        how = (True, "native", None, not keeps)
        found = _sample_kl.gradients(tensors, kept, recipe.options, need, grad_z, grad_kl, *how)
        return (*found[:2], None, None, None)


class _SmallSample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, scale: Tensor, state: Tensor, drawn: bool, recipe: Recipe
    ) -> Tensor:
        small = recipe.small
        kept = ctx.kept = small.fresh(scale)
        ctx.save_for_backward(mu, scale, state)
        ctx.recipe = recipe
        z: Tensor = small.forward(mu, scale, state, drawn, kept)
        return z

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor) -> Any:
        mu, scale, state = ctx.saved_tensors
        kept, keeps = ctx.kept, keeps_graph()
        if not keeps:
            ctx.kept = None
        if not recording() and not keeps and direct(grad_z):
            # dz/dmu is 1.
            return grad_z.contiguous(), kept.mul_(grad_z), None, None, None
        tensors = (mu, scale, None, None, None, None, state, None)
        need = [*ctx.needs_input_grad[:2], False, False]
        how = (True, "native", None, not keeps)
        found = _sample_kl.gradients(tensors, kept, ctx.recipe.options, need, grad_z, None, *how)
        return (*found[:2], None, None, None)


def gaussian_kl(mu: Tensor, scale: Tensor, settings: tuple[object, ...]) -> Tensor | None:
    """The KL of a posterior to N(0, I), or None where there is no recipe."""
    if is_dynamo_compiling():
        return None
    try:
        recipe = _recipes.kept.get(key_of((mu, scale), settings))
    except TypeError:
        declined("settings", "it is not hashable")
        return None
    if recipe is None:
        return None
    kl: Tensor
    if recording() and (mu.requires_grad or scale.requires_grad):
        kl = recipe.apply(mu, scale, recipe)
    else:
        kl = recipe.small.forward(mu, scale)
    return kl


class _SmallKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, scale: Tensor, recipe: Recipe) -> Tensor:
        ctx.save_for_backward(mu, scale)
        ctx.recipe = recipe
        kl: Tensor = recipe.small.forward(mu, scale)
        return kl

    @staticmethod
    def backward(ctx: Any, grad_kl: Tensor) -> Any:
        mu, scale = ctx.saved_tensors
        recipe = ctx.recipe
        need = ctx.needs_input_grad
        strides = recipe.small.strides
        if (
            not recording()
            and mu.stride() == strides[0]
            and scale.stride() == strides[1]
            and direct(grad_kl)
        ):
            # Of a sum over the latent dimensions the upstream gradient is one number a sample.
            each = grad_kl.dim() > 1 and any(grad_kl.stride()[1:])
            if not each or grad_kl.is_contiguous():
                return (*recipe.small.backward(grad_kl, mu, scale, need, each), None)
        tensors = (mu, scale, None, None, None, None, None, None)
        need, how = [*need[:2], False, False], (True, "native", None, False)
        found = _sample_kl.gradients(tensors, None, recipe.options, need, None, grad_kl, *how)
        return (*found[:2], None)


_apply_sample_kl = apply_of(_SmallSampleKL)
_apply_sample = apply_of(_SmallSample)
_apply_kl = apply_of(_SmallKL)
