"""The calls that a standard VAE makes at every step, at sizes where what leads to a kernel costs
more than the kernel: a call like one that passed all checks is made from a recipe.

What a recipe's key does not say (tracing, transforms, subclasses, views whose memory holds other
numbers) sends the call the long way, which is always right.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backends, random
from ..backends._options import Nll, Posterior
from ..likelihoods import Likelihood, Params
from . import _nll, _sample_kl
from ._autograd import direct, keeps_graph

# More signatures than any one program calls with.
_LIMIT = 1024

_recipes: dict[Hashable, Any] = {}


def sample_kl(
    mu: Tensor,
    scale: Tensor,
    settings: tuple[object, ...],
    seed: random.Seed | None,
    generator: random.Generator | None,
) -> tuple[Tensor, Tensor] | None:
    """(z, kl) of a posterior against N(0, I), or None where there is no recipe."""
    found: tuple[Tensor, Tensor] | None
    found = _sampled(_apply_sample_kl, mu, scale, settings, seed, generator)
    return found


def rsample(
    mu: Tensor,
    scale: Tensor,
    settings: tuple[object, ...],
    seed: random.Seed | None,
    generator: random.Generator | None,
) -> Tensor | None:
    """A sample of a posterior, or None where there is no recipe."""
    found: Tensor | None = _sampled(_apply_sample, mu, scale, settings, seed, generator)
    return found


def _sampled(
    apply: Callable[..., Any],
    mu: Tensor,
    scale: Tensor,
    settings: tuple[object, ...],
    seed: random.Seed | None,
    generator: random.Generator | None,
) -> Any:
    recipe = _recipe((mu, scale), settings)
    if recipe is None:
        return None
    recorded = False
    if torch.is_grad_enabled():
        recorded = mu.requires_grad
        if scale.requires_grad != recorded:
            return None
    if seed is None and generator is None:
        state = random.draw(mu)
    elif _one_stream(seed, generator):
        state = random.make_state(mu, mu.shape[0], seed, generator)
    else:
        return None
    if recorded:
        return apply(mu, scale, state, recipe)
    return recipe[0].forward(mu, scale, state, None)


def _one_stream(seed: random.Seed | None, generator: random.Generator | None) -> bool:
    """False for one stream per sample. Asked before any generator is drawn from: the long way would
    draw again."""
    if generator is not None:
        return isinstance(generator, torch.Generator)
    return isinstance(seed, int) or (isinstance(seed, Tensor) and seed.dim() == 1)


def keep_posterior(
    mu: Tensor, scale: Tensor, settings: tuple[object, ...], options: Posterior
) -> None:
    """Makes the recipe of a call, with a sample, of it or of the KL alone, that went the long way,
    if one can be made."""
    if options.reduce in ("", "sample", "sum") and _may_be_small(mu, scale):
        from ..backends.native import small

        kind: type[small.SmallKl | small.SmallSample] = small.SmallSampleKl
        if options.num_samples < 0:
            kind = small.SmallKl
        elif not options.reduce:
            kind = small.SmallSample
        if mu.dtype == scale.dtype and small.fits(mu, scale):
            _keep((mu, scale), settings, (kind(mu, scale, options), options))


class _SmallSampleKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, scale: Tensor, state: Tensor, recipe: tuple[Any, Posterior]
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        kept = recipe[0].room(scale)
        ctx.save_for_backward(mu, scale, state, kept)
        ctx.recipe = recipe
        result: tuple[Tensor, Tensor] = recipe[0].forward(mu, scale, state, kept)
        return result

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> Any:
        mu, scale, state, kept = ctx.saved_tensors
        small, options = ctx.recipe
        if (
            grad_z is not None
            and grad_kl is not None
            and grad_z.is_contiguous()
            and not torch.is_grad_enabled()
            and not keeps_graph()
            and direct(grad_z, grad_kl)
        ):
            return (*small.backward(grad_z, grad_kl, mu, scale, kept), None, None)
        tensors = (mu, scale, None, None, None, None, state, None)
        need = list(ctx.needs_input_grad[:2])
        found = _sample_kl.gradients(
            tensors, kept, options, [*need, False, False], grad_z, grad_kl, True, "native"
        )
        return (*found[:2], None, None)


class _SmallSample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, scale: Tensor, state: Tensor, recipe: tuple[Any, Posterior]
    ) -> Tensor:
        kept = recipe[0].room(scale)
        ctx.save_for_backward(mu, scale, state, kept)
        ctx.recipe = recipe
        z: Tensor = recipe[0].forward(mu, scale, state, kept)
        return z

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor) -> Any:
        mu, scale, state, kept = ctx.saved_tensors
        if (
            grad_z.is_contiguous()
            and not torch.is_grad_enabled()
            and not keeps_graph()
            and direct(grad_z)
        ):
            # dz/dmu is 1.
            return grad_z, kept.mul_(grad_z), None, None
        tensors = (mu, scale, None, None, None, None, state, None)
        need = [*ctx.needs_input_grad[:2], False, False]
        found = _sample_kl.gradients(
            tensors, kept, ctx.recipe[1], need, grad_z, None, True, "native"
        )
        return (*found[:2], None, None)


def gaussian_kl(mu: Tensor, scale: Tensor, settings: tuple[object, ...]) -> Tensor | None:
    """The KL of a posterior to N(0, I), or None where there is no recipe."""
    recipe = _recipe((mu, scale), settings)
    if recipe is None:
        return None
    kl: Tensor
    if torch.is_grad_enabled() and (mu.requires_grad or scale.requires_grad):
        kl = _apply_kl(mu, scale, recipe)
    else:
        kl = recipe[0].forward(mu, scale)
    return kl


class _SmallKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, scale: Tensor, recipe: tuple[Any, Posterior]) -> Tensor:
        ctx.save_for_backward(mu, scale)
        ctx.recipe = recipe
        kl: Tensor = recipe[0].forward(mu, scale)
        return kl

    @staticmethod
    def backward(ctx: Any, grad_kl: Tensor) -> Any:
        mu, scale = ctx.saved_tensors
        small, options = ctx.recipe
        need = ctx.needs_input_grad[:2]
        if direct(grad_kl) and not torch.is_grad_enabled():
            return (*small.backward(grad_kl, mu, scale, need), None)
        tensors = (mu, scale, None, None, None, None, None, None)
        found = _sample_kl.gradients(
            tensors, None, options, [*need, False, False], None, grad_kl, True, "native"
        )
        return (*found[:2], None)


def nll(params: Params, target: Tensor, model: Likelihood, reduction: str) -> Tensor | None:
    """The loss of dense parameters and target, or None where there is no recipe."""
    tensors = params if isinstance(params, tuple) else (params,)
    recipe = _recipe((*tensors, target), (model, reduction))
    if recipe is None:
        return None
    need = [False] * len(tensors)
    if torch.is_grad_enabled():
        if target.requires_grad:
            return None
        need = [p.requires_grad for p in tensors]
    loss: Tensor
    if True in need:
        loss = _apply_nll(recipe, target, *tensors)
    else:
        loss, _ = recipe[0].forward(tensors, target, need)
    return loss


def keep_nll(
    params: tuple[Tensor, ...], target: Tensor, model: Likelihood, reduction: str, options: Nll
) -> None:
    """Makes the recipe of a call that went the long way, if one can be made."""
    if (
        options.reduce in ("sample", "sum")
        and options.scalar < 0
        and options.lead == 1
        and _may_be_small(*params, target)
    ):
        from ..backends.native import small

        same = all(p.dtype == params[0].dtype for p in params)
        if same and target.is_contiguous() and small.fits(*params):
            recipe = (small.SmallNll(params, target, options), options)
            _keep((*params, target), (model, reduction), recipe)


class _SmallNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recipe: tuple[Any, Nll], target: Tensor, *params: Tensor) -> Tensor:
        loss: Tensor
        loss, grads = recipe[0].forward(params, target, ctx.needs_input_grad[2:])
        ctx.save_for_backward(*params, target, *grads)
        ctx.recipe = recipe
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        options, need = ctx.recipe[1], ctx.needs_input_grad[2:]
        count = len(need)
        saved = ctx.saved_tensors
        params, target, grads = saved[:count], saved[count], saved[count + 1 :]
        if torch.is_grad_enabled():
            found = _nll.twice_differentiable(
                params, target, None, None, None, options, need, upstream
            )
        else:
            found = [
                None
                if grad is None
                else _nll.times_upstream(grad, index, params[index], upstream, options, "native")
                for index, grad in enumerate(grads)
            ]
        return (None, None, *found)


def _apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` but for what it does in Python first, some 3 us: unwrapping the tensors
    that a transform of torch.func has left behind, which `_plain` sends the long way."""
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


_apply_sample_kl = _apply(_SmallSampleKL)
_apply_sample = _apply(_SmallSample)
_apply_kl = _apply(_SmallKL)
_apply_nll = _apply(_SmallNLL)

_PLAIN = (Tensor, torch.nn.Parameter)
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def _plain(tensors: tuple[Tensor, ...]) -> bool:
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return False
    # A plain loop: a generator in all() takes twice the time.
    for t in tensors:
        if type(t) not in _PLAIN or t.is_neg() or t._is_zerotensor() or _wrapped(t):
            return False
    return True


def _recipe(tensors: tuple[Tensor, ...], settings: tuple[object, ...]) -> Any:
    if not _plain(tensors):
        return None
    try:
        return _recipes.get(_key(tensors, settings))
    except TypeError:
        # A clamp may be a list.
        return None


def _key(tensors: tuple[Tensor, ...], settings: tuple[object, ...]) -> Hashable:
    return (
        backends.forced(),
        settings,
        *[(t.shape, t.stride(), t.dtype, t.is_cpu) for t in tensors],
    )


def _may_be_small(*tensors: Tensor) -> bool:
    return _plain(tensors) and all(t.is_cpu for t in tensors) and backends.select("cpu") == "native"


def _keep(tensors: tuple[Tensor, ...], settings: tuple[object, ...], recipe: object) -> None:
    if len(_recipes) >= _LIMIT:
        _recipes.clear()
    try:
        _recipes[_key(tensors, settings)] = recipe
    except TypeError:
        return
