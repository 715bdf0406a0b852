"""The calls that a standard VAE makes at every step, at sizes where what leads to a kernel costs
more than the kernel: a call like one that passed all checks is made from a recipe.

What a recipe's key does not say (tracing, transforms, subclasses, views whose memory holds other
numbers) sends the call the long way, which is always right. Half of such a call is Python's
interpreter, at some 20 ns a bytecode, so it is written for few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .. import backends, random
from ..backends._options import Nll, Posterior
from ..likelihoods import Likelihood, Params
from . import _nll, _sample_kl
from ._autograd import PLAIN, by_reference, direct, keeps_graph

# More signatures than any one program calls with.
_LIMIT = 1024

_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active
_recording = torch.is_grad_enabled


class _Recipe:
    """A call of the core made ready, the options it was made of, and its autograd function."""

    __slots__ = ("apply", "options", "small")

    def __init__(self, small: Any, options: Posterior | Nll, apply: Callable[..., Any]) -> None:
        self.small = small
        self.options = options
        self.apply = apply


_recipes: dict[Hashable, _Recipe] = {}


def sample(
    mu: Tensor,
    scale: Tensor,
    settings: tuple[object, ...],
    seed: random.Seed | None,
    generator: random.Generator | None,
) -> Any:
    """What the operator of these settings gives, a sample of a posterior, alone or with its KL to
    N(0, I), or None where there is no recipe."""
    try:
        recipe = _recipes.get(_key((mu, scale), settings))
    except TypeError:
        # A clamp may be a list.
        return None
    if recipe is None:
        return None
    recorded = _recording() and mu.requires_grad
    if scale.requires_grad is not recorded and _recording():
        return None
    drawn = seed is None and generator is None
    if drawn:
        state = random.drawn(mu)
    elif _one_stream(seed, generator):
        state = random.make_state(mu, mu.shape[0], seed, generator)
    else:
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


def keep_posterior(
    mu: Tensor, scale: Tensor, settings: tuple[object, ...], options: Posterior
) -> None:
    """Makes the recipe of a call, with a sample, of it or of the KL alone, that went the long way,
    if one can be made."""
    key = _key((mu, scale), settings)
    if key is None or options.reduce not in ("", "sample", "sum") or not _native(mu):
        return
    from ..backends.native import small

    if mu.dtype != scale.dtype or not small.fits(mu, scale):
        return
    if options.num_samples < 0:
        recipe = _Recipe(small.SmallKl(mu, scale, options), options, _apply_kl)
    elif options.reduce:
        recipe = _Recipe(small.SmallSampleKl(mu, scale, options), options, _apply_sample_kl)
    else:
        recipe = _Recipe(small.SmallSample(mu, scale, options), options, _apply_sample)
    _keep(key, recipe)


class _SmallSampleKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, scale: Tensor, state: Tensor, drawn: bool, recipe: _Recipe
    ) -> tuple[Tensor, Tensor]:
        small = recipe.small
        kept = small.fresh(scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mu, scale, state, kept)
        ctx.recipe = recipe
        result: tuple[Tensor, Tensor] = small.forward(mu, scale, state, drawn, kept)
        return result

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> Any:
        mu, scale, state, kept = ctx.saved_tensors
        recipe = ctx.recipe
        if (
            grad_z is not None
            and grad_kl is not None
            and not _recording()
            and not keeps_graph()
            and grad_z.is_contiguous()
            and direct(grad_z, grad_kl)
        ):
            return recipe.small.backward(grad_z, grad_kl, mu, scale, kept), kept, None, None, None
        tensors = (mu, scale, None, None, None, None, state, None)
        need = list(ctx.needs_input_grad[:2])
        found = _sample_kl.gradients(
            tensors, kept, recipe.options, [*need, False, False], grad_z, grad_kl, True, "native"
        )
        return (*found[:2], None, None, None)


class _SmallSample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, scale: Tensor, state: Tensor, drawn: bool, recipe: _Recipe
    ) -> Tensor:
        small = recipe.small
        kept = small.fresh(scale)
        ctx.save_for_backward(mu, scale, state, kept)
        ctx.recipe = recipe
        z: Tensor = small.forward(mu, scale, state, drawn, kept)
        return z

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor) -> Any:
        mu, scale, state, kept = ctx.saved_tensors
        if not _recording() and not keeps_graph() and grad_z.is_contiguous() and direct(grad_z):
            # dz/dmu is 1.
            return grad_z, kept.mul_(grad_z), None, None, None
        tensors = (mu, scale, None, None, None, None, state, None)
        need = [*ctx.needs_input_grad[:2], False, False]
        found = _sample_kl.gradients(
            tensors, kept, ctx.recipe.options, need, grad_z, None, True, "native"
        )
        return (*found[:2], None, None, None)


def gaussian_kl(mu: Tensor, scale: Tensor, settings: tuple[object, ...]) -> Tensor | None:
    """The KL of a posterior to N(0, I), or None where there is no recipe."""
    try:
        recipe = _recipes.get(_key((mu, scale), settings))
    except TypeError:
        return None
    if recipe is None:
        return None
    kl: Tensor
    if _recording() and (mu.requires_grad or scale.requires_grad):
        kl = recipe.apply(mu, scale, recipe)
    else:
        kl = recipe.small.forward(mu, scale)
    return kl


class _SmallKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, scale: Tensor, recipe: _Recipe) -> Tensor:
        ctx.save_for_backward(mu, scale)
        ctx.recipe = recipe
        kl: Tensor = recipe.small.forward(mu, scale)
        return kl

    @staticmethod
    def backward(ctx: Any, grad_kl: Tensor) -> Any:
        mu, scale = ctx.saved_tensors
        recipe = ctx.recipe
        need = ctx.needs_input_grad
        if not _recording() and direct(grad_kl):
            return (*recipe.small.backward(grad_kl, mu, scale, need), None)
        tensors = (mu, scale, None, None, None, None, None, None)
        found = _sample_kl.gradients(
            tensors, None, recipe.options, [*need[:2], False, False], None, grad_kl, True, "native"
        )
        return (*found[:2], None)


def nll(params: Params, target: Tensor, model: Likelihood, reduction: str) -> Tensor | None:
    """The loss of dense parameters and target, or None where there is no recipe."""
    if is_dynamo_compiling():
        return None
    tensors, settings = _described(params, model, reduction)
    try:
        recipe = _recipes.get(_key((*tensors, target), settings))
    except TypeError:
        # A likelihood of the user's may hold anything.
        return None
    if recipe is None:
        return None
    loss: Tensor
    if _recording():
        if target.requires_grad:
            return None
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
    if is_dynamo_compiling():
        return
    tensors, settings = _described(params, model, reduction)
    key = _key((*tensors, target), settings)
    if (
        key is None
        or options.reduce not in ("sample", "sum")
        or options.lead != 1
        or len(tensors) != count
        or not _native(target)
    ):
        return
    from ..backends.native import small

    scalar = options.scalar
    if scalar >= 0 and (scalar != len(tensors) - 1 or tensors[scalar].dim() > 0):
        return
    full = tensors if scalar < 0 else tensors[:scalar]
    same = all(p.dtype == tensors[0].dtype for p in tensors)
    if same and target.is_contiguous() and small.fits(*full):
        _keep(key, _Recipe(small.SmallNll(tensors, target, options), options, _apply_nll))


class _SmallNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recipe: _Recipe, target: Tensor, *params: Tensor) -> Tensor:
        loss: Tensor
        loss, grads = recipe.small.forward(params, target, ctx.needs_input_grad[2:])
        # In the order of the long way, as everywhere here: under checkpointing the forward pass may
        # go one way and its recomputation the other.
        ctx.save_for_backward(*params, target, *grads)
        ctx.recipe = recipe
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return (None, None, *_nll_gradients(ctx, upstream, 2))


def _nll_gradients(ctx: Any, upstream: Tensor, first: int) -> Sequence[Tensor | None]:
    """Those of the parameters, the first of which is the function's argument `first`."""
    saved, options = ctx.saved_tensors, ctx.recipe.options
    count = len(saved) // 2
    grads = saved[count + 1 :]
    # The end of most programs' graphs: little is left to do.
    if (
        not _recording()
        and not keeps_graph()
        and direct(upstream)
        and upstream.dim() == 0
        and upstream.item() == 1.0
    ):
        made: Sequence[Tensor | None] = grads
        scalar = options.scalar
        if scalar >= 0 and grads[scalar] is not None:
            made = (*grads[:scalar], grads[scalar].sum())
        return made
    params, target = saved[:count], saved[count]
    if by_reference(upstream):
        need = ctx.needs_input_grad[first:]
        return _nll.twice_differentiable(params, target, None, None, None, options, need, upstream)
    return [
        None
        if grad is None
        else _nll.times_upstream(grad, index, params[index], upstream, options, "native")
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
        recipe = _recipes.get(_key((*tensors, target, kl), settings))
    except TypeError:
        return None
    if recipe is None:
        return None
    if not _recording():
        nll, _ = recipe.small.forward(tensors, target, None)
        return _elbo_of(nll, kl, beta)
    if target.requires_grad:
        return None
    found: tuple[Tensor, Tensor, Tensor] = recipe.apply(recipe, beta, target, kl, *tensors)
    return found


def _elbo_of(nll: Tensor, kl: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = kl.mean()
    return torch.add(nll, mean, alpha=beta), nll, mean


def keep_elbo(params: Params, target: Tensor, model: Likelihood, kl: Tensor) -> None:
    """Makes the recipe of a call that went the long way, if its likelihood left one."""
    if is_dynamo_compiling():
        return
    tensors, settings = _described(params, model, "batchmean")
    try:
        found = _recipes[_key((*tensors, target), settings)]
    except (KeyError, TypeError):
        return
    _, settings = _described(params, model, "elbo")
    key = _key((*tensors, target, kl), settings)
    if key is not None and kl.dtype == found.small.loss.dtype:
        _keep(key, _Recipe(found.small, found.options, _apply_elbo))


class _SmallELBO(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, recipe: _Recipe, beta: float, target: Tensor, kl: Tensor, *params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll, grads = recipe.small.forward(params, target, ctx.needs_input_grad[4:])
        found = _elbo_of(nll, kl, beta)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*found[1:])
        ctx.save_for_backward(*params, target, *grads)
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


def _apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` without what it and its node do in Python first, some 4 us: unwrapping the
    tensors that a transform of torch.func has left behind, which `_key` sends the long way, and
    finding `backward`."""
    function._backward_cls.apply = function.backward  # type: ignore[attr-defined]
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


_apply_sample_kl = _apply(_SmallSampleKL)
_apply_sample = _apply(_SmallSample)
_apply_kl = _apply(_SmallKL)
_apply_nll = _apply(_SmallNLL)
_apply_elbo = _apply(_SmallELBO)


def _key(tensors: tuple[Tensor, ...], settings: tuple[object, ...]) -> Hashable | None:
    """What a recipe is kept under; None where more may stand behind a tensor than it shows."""
    if is_dynamo_compiling() or _modes() or _transforms() or forward_ad._current_level >= 0:
        return None
    key: list[Hashable] = [backends.forced, settings]
    try:
        for t in tensors:
            # A zero tensor has no memory, and to ask for its memory is an error of what a
            # transform has left behind.
            if type(t) not in PLAIN or t.is_neg() or not t.data_ptr():
                return None
            key += t.shape, t.stride(), t.dtype, t.is_cpu
    except RuntimeError:
        return None
    return tuple(key)


def _native(tensor: Tensor) -> bool:
    return tensor.is_cpu and backends.select("cpu") == "native"


def _keep(key: Hashable, recipe: _Recipe) -> None:
    if len(_recipes) >= _LIMIT:
        _recipes.clear()
    try:
        _recipes[key] = recipe
    except TypeError:
        return
