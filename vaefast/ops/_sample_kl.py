"""Samples of a posterior and its KL: which way a call goes, and its autograd function.

`rsample`, `gaussian_kl` and `sample_kl` are this one operator with one output or both.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _args, backends, random
from .._args import compute_dtype, grad_needed, operand
from .._explain import declined, served
from .._torch import apply_of, keeps_graph
from ..backends._options import Posterior
from ..backends.reference import sample_kl as reference
from . import _plans
from ._autograd import (
    by_plain_pytorch,
    distinct,
    keep,
    kept,
    needs_reference,
)
from ._memory_order import inverse, memory_order, ordered
from ._plans import recording
from ._register import direct, settled
from ._sample_kl_backward import Call, balanced, gradients, shared
from ._sample_kl_operator import Others, Unplanned, forward, in_schema


def run(
    mu: Tensor,
    scale: Tensor,
    options: Posterior,
    *,
    prior_mu: Tensor | None = None,
    prior_scale: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    state: Tensor | None = None,
    noise: Tensor | None = None,
    balance: float | None = None,
    key: Hashable | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """(z, kl) by the backend that serves, each None where `options` does not ask for it.

    `balance`: the prior's share of the KL's gradient, and what is left of 1 the posterior's. `key`:
    what the call's plan may be kept under.
    """
    name = "gaussian_kl" if options.num_samples < 0 else "sample_kl"
    backend = backends.select(mu.device, name, dtype=mu.dtype)
    others: Others = (prior_mu, prior_scale, mask, weight, noise)
    # Of several samples the first dimension is theirs, and the noise of each its own.
    order = memory_order(mu, 1) if options.num_samples <= 0 else None
    if order is not None and not needs_reference(weight, noise):
        if key is not None:
            declined("layout", "mu's dimensions lie in memory in another order")
        return _in_order(order, mu, scale, others, state, options, balance)
    if key is not None and backend != "native":
        declined("backend", backend)
    if by_plain_pytorch("sample_kl", backend, weight, noise):
        if balance is not None:
            return balanced(mu, scale, others, state, options, balance)
        by: Any = reference.sample_kl
        return by(*in_schema(mu, scale, others, state), options)  # type: ignore[no-any-return]
    if backend == "native" and direct(mu, scale, *others, state):
        if all(t is None for t in others):
            others = ()
        plan = backends.load(backend, "sample_kl").plan(mu, scale, others, options)
        _plans.keep(key, plan)
        served("sample_kl", backend, "direct")
        kind = 0 if state is None else state.dim() - 1
        z, kl = _beside(plan, mu, scale, others, state, kind, balance)
        return z, kl
    options, numbers = settled(options)
    if grad_needed(mu, scale, prior_mu, prior_scale):
        share = None if balance is None else operand(balance)
        unplanned = Unplanned(options, backend)
        z, kl = _SampleKlFunction.apply(
            *distinct(unplanned, state, 0, False, mu, scale, *others, numbers, share)
        )
    else:
        z, kl = forward.call(backend, numbers, *in_schema(mu, scale, others, state), options)
    return z if options.num_samples >= 0 else None, kl if options.reduce else None


def find(
    mu: Tensor, scale: Tensor, others: Others, settings: tuple[object, ...]
) -> tuple[Tensor, Others, Hashable | None, Any]:
    """The scale, of mu's shape where it broadcasts to it; the others, where one of `[B]` is one
    value per sample; what to keep the call's plan under; and the one that is kept there."""
    if others:
        prior_mu, prior_scale, mask, weight, noise = others
        if not _plans.takes(weight, noise):
            return scale, others, None, None
        if isinstance(mu, Tensor):
            mask, weight = (
                _args.one_per_sample(t, mu.shape) if isinstance(t, Tensor) else t
                for t in (mask, weight)
            )
        others = prior_mu, prior_scale, mask, weight, noise
    key, plan = _plans.find((mu, scale, *others), settings)
    if key is not None and plan is None:
        given, scale = scale, _args.posterior(mu, scale)
        if scale is not given:
            key, plan = _plans.find((mu, scale, *others), settings)
    return scale, others, key, plan


def run_found(
    plan: Any,
    mu: Tensor,
    scale: Tensor,
    seed: random.Seed | None,
    generator: random.Generator | None,
    others: Others = (),
    balance: float | None = None,
) -> Any:
    """(z, kl) by a plan that was found."""
    state: Tensor | None
    if others and others[4] is not None:
        state, kind = None, 0
    elif seed is None and generator is None:
        state, kind = random.draw_unsettled(mu), 2
    else:
        state = random.make_state(mu, mu.shape[0], seed, generator)
        kind = state.dim() - 1
    if others:
        return _beside(plan, mu, scale, others, state, kind, balance)
    if recording() and (mu.requires_grad or scale.requires_grad):
        return _apply(plan, state, kind, True, mu, scale)
    return plan.forward(mu, scale, (), state, kind, False)[:2]


def kl_found(
    plan: Any, mu: Tensor, scale: Tensor, others: Others = (), balance: float | None = None
) -> Any:
    """The KL by a plan that was found."""
    if others:
        return _beside(plan, mu, scale, others, None, 0, balance)[1]
    if recording() and (mu.requires_grad or scale.requires_grad):
        return _apply(plan, None, 0, True, mu, scale)[1]
    return plan.forward(mu, scale, (), None, 0, False)[1]


def _beside(
    plan: Any,
    mu: Tensor,
    scale: Tensor,
    others: Others,
    state: Tensor | None,
    state_kind: int,
    balance: float | None,
) -> Any:
    """(z, kl) by a plan, with operands beside mu and scale or none."""
    if not grad_needed(mu, scale, *others[:2]):
        return plan.forward(mu, scale, others, state, state_kind, False)[:2]
    if balance is None:
        return _apply(plan, state, state_kind, False, mu, scale, *others)
    return _apply(plan, state, state_kind, False, mu, scale, *others, None, balance)


def _in_order(
    order: tuple[int, ...],
    mu: Tensor,
    scale: Tensor,
    others: Others,
    state: Tensor | None,
    options: Posterior,
    balance: float | None,
) -> tuple[Tensor | None, Tensor | None]:
    """`run` of operands that lie in memory by this order of dimensions.

    Noise belongs to its place as it is counted: it is made there, and brought into the order.
    """
    noise = others[4]
    if state is not None:
        dtype = compute_dtype(mu, scale, *others[:2])
        noise = random.normal(mu.shape, state, dtype=dtype, offset=options.offset)
    prior_mu, prior_scale, mask, weight = (ordered(t, order) for t in others[:4])
    z, kl = run(
        ordered(mu, order),
        ordered(scale, order),
        options,
        prior_mu=prior_mu,
        prior_scale=prior_scale,
        mask=mask,
        weight=weight,
        noise=ordered(noise, order),
        balance=balance,
    )
    if z is not None:
        z = z.permute(inverse(order))
    if kl is not None and options.reduce == "elem":
        kl = kl.permute(inverse(order))
    elif kl is not None and options.reduce == "dim":
        kl = kl.permute(inverse([d - 1 for d in order[1:]]))
    return z, kl


class _SampleKlFunction(torch.autograd.Function):
    """Of mu and scale, and of the `others`, then with what a compiler does not know of the
    options' numbers, and the balance. `found`: the plan was found, not made."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Any,
        state: Tensor | None,
        state_kind: int,
        found: bool,
        mu: Tensor,
        scale: Tensor,
        *others: Any,
    ) -> tuple[Tensor | None, Tensor | None]:
        need = ctx.needs_input_grad
        z, kl, derivative = plan.forward(mu, scale, others, state, state_kind, need[5])
        ctx.plan = plan
        if found:
            # What follows, in fewer bytecodes: whoever found a plan has asked for hooks.
            ctx.materialize_grads = False
            ctx.made = (derivative,)
            ctx.kinds = plan.kinds[3 if state is None else state_kind]
            if state is None:
                ctx.save_for_backward(mu, scale)
            else:
                ctx.save_for_backward(mu, scale, state)
            return z, kl
        ctx.set_materialize_grads(False)
        ctx.balance = None
        if len(others) > 5 and not isinstance(others[6], Tensor):
            # A number that a compiler does not know is a tensor.
            ctx.balance, others = others[6], (*others[:6], None)
        # Nothing absent is saved where it need not be: a hook can be set on all that is.
        last = () if state is None and not others else (state,)
        keep(ctx, (mu, scale, *others, *last), (derivative,))
        if z is not None and not (need[4] or need[5]):
            # A sample does not depend on the prior: it has no gradient where that alone is learned.
            ctx.mark_non_differentiable(z)
        return z, kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> Any:
        plan, made, saved = ctx.plan, ctx.made, ctx.saved_tensors
        need = ctx.needs_input_grad[4:]
        grads: Sequence[Tensor | None]
        if made and len(saved) < 4 and not recording():
            overwrite = not keeps_graph()
            how = plan.seen(saved, grad_z, grad_kl, made[0] if overwrite else None)
            if how is not None:
                # The end of most programs' graphs: nothing else is to be thought of.
                if overwrite:
                    ctx.made = ()
                mu, scale, *others = saved
                state = others[0] if others else None
                grad_mu, grad_scale = plan.backward(
                    grad_z, grad_kl, mu, scale, (), state, made[0], need, overwrite, how
                )
                return None, None, None, None, grad_mu, grad_scale
        hooked = made is None
        (mu, scale, *others), (derivative,), overwrite = kept(ctx, len(saved) - hooked, saved)
        # Starred, it is a tuple to the compiler of torch 2.11.
        state, others = (others[-1], others[:-1]) if others else (None, others)
        if hooked and not isinstance(plan, Unplanned):
            # What a hook brings back may be of any layout and dtype.
            plan = backends.load("native", "sample_kl").plan(mu, scale, others[:5], plan.options)
        call = Call(plan, mu, scale, tuple(others[:5]), state, *others[5:6])
        if len(others) < 6:
            grads = gradients(call, need, grad_z, grad_kl, derivative, overwrite)
        else:
            balance = others[6] if ctx.balance is None else ctx.balance
            grads = shared(call, need, grad_z, grad_kl, derivative, overwrite, balance)
        return (None, None, None, None, *grads, *(None,) * (len(need) - len(grads)))


_apply = apply_of(_SampleKlFunction)
