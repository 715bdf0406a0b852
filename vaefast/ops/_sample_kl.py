"""The registered operator that samples a posterior and takes its KL, and its autograd function.

`rsample`, `gaussian_kl` and `sample_kl` are this one operator with one output or both.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _args, backends, random
from .._args import compute_dtype, grad_needed, operand
from .._explain import declined, served
from .._torch import apply_of, keeps_graph
from ..backends._options import Posterior, z_shape
from ..backends.reference import sample_kl as reference
from . import _plans
from ._autograd import (
    by_plain_pytorch,
    by_reference,
    distinct,
    keep,
    kept,
    needs_reference,
    reference_grads,
)
from ._memory_order import inverse, memory_order, ordered
from ._plans import recording
from ._register import Operator, direct, settled

_TENSORS = (
    "Tensor mu, Tensor scale, Tensor? prior_mu, Tensor? prior_scale, Tensor? mask, "
    "Tensor? weight, Tensor? state, Tensor? noise"
)


# What is beside mu and scale: prior_mu, prior_scale, mask, weight, noise; () for none of them.
Others = tuple[Tensor | None, ...]


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
            return _balanced(mu, scale, others, state, options, balance)
        by: Any = reference.sample_kl
        return by(*_in_schema(mu, scale, others, state), options)  # type: ignore[no-any-return]
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
        z, kl = _forward.call(backend, numbers, *_in_schema(mu, scale, others, state), options)
    return z if options.num_samples >= 0 else None, kl if options.reduce else None


def find(
    mu: Tensor, scale: Tensor, others: Others, settings: tuple[object, ...]
) -> tuple[Others, Hashable | None, Any]:
    """The others, where one of `[B]` is one value per sample; what to keep the call's plan under;
    and the one that is kept there."""
    if not others:
        return others, *_plans.find((mu, scale), settings)
    prior_mu, prior_scale, mask, weight, noise = others
    if not _plans.takes(weight, noise):
        return others, None, None
    if isinstance(mu, Tensor):
        mask, weight = (
            _args.one_per_sample(t, mu.shape) if isinstance(t, Tensor) else t
            for t in (mask, weight)
        )
    others = prior_mu, prior_scale, mask, weight, noise
    return others, *_plans.find((mu, scale, *others), settings)


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


class Unplanned(NamedTuple):
    """A call that has no plan: by a backend that makes none, or by torch's dispatcher."""

    options: Posterior
    backend: str

    def forward(
        self,
        mu: Tensor,
        scale: Tensor,
        others: Others,
        state: Tensor | None,
        state_kind: int,
        keep: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As a plan's."""
        tensors = _in_schema(mu, scale, others, state)
        z, kl = _forward.call(self.backend, others[5], *tensors, self.options)
        return z, kl, None


def _in_schema(
    mu: Tensor, scale: Tensor, others: Others, state: Tensor | None
) -> tuple[Tensor | None, ...]:
    """In the order of the registered operator."""
    prior_mu, prior_scale, mask, weight, noise = others[:5] or (None,) * 5
    return mu, scale, prior_mu, prior_scale, mask, weight, state, noise


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
        call = _Call(plan, mu, scale, tuple(others[:5]), state, *others[5:6])
        if len(others) < 6:
            grads = _gradients(call, need, grad_z, grad_kl, derivative, overwrite)
        else:
            balance = others[6] if ctx.balance is None else ctx.balance
            grads = _shared(call, need, grad_z, grad_kl, derivative, overwrite, balance)
        return (None, None, None, None, *grads, *(None,) * (len(need) - len(grads)))


_apply = apply_of(_SampleKlFunction)


class _Call(NamedTuple):
    """What a backward pass finds of its forward pass. `numbers`: those that a compiler does not
    know of the options."""

    plan: Any
    mu: Tensor
    scale: Tensor
    others: Others
    state: Tensor | None
    numbers: Tensor | None = None

    def apart(self, posterior: bool) -> _Call:
        """With the parameters constant of the prior, or else those of the posterior."""
        if posterior:
            fixed = [None if t is None else t.detach() for t in self.others[:2]]
            return self._replace(others=(*fixed, *self.others[2:]))
        return self._replace(mu=self.mu.detach(), scale=self.scale.detach())


def _shared(
    call: _Call,
    need: Sequence[bool],
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    derivative: Tensor | None,
    overwrite: bool,
    balance: float | Tensor | None,
) -> Sequence[Tensor | None]:
    """As `_gradients`; `balance` of the KL's goes to the prior, what is left to the posterior."""
    if balance is None or grad_kl is None:
        return _gradients(call, need[:4], grad_z, grad_kl, derivative, overwrite)
    # Two terms of one value: each has one side's gradients, and takes the other's parameters for
    # constants, to any order.
    ours, its = ((_share(grad_kl, s)) for s in (1 - balance, balance))
    own = (*need[:2], False, False)
    posterior = _gradients(call.apart(True), own, grad_z, ours, derivative, overwrite)
    own = (False, False, *need[2:4])
    prior = _gradients(call.apart(False), own, None, its, None, False)
    return (*posterior[:2], *prior[2:])


def _gradients(
    call: _Call,
    need: Sequence[bool],
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    derivative: Tensor | None,
    overwrite: bool,
) -> Sequence[Tensor | None]:
    """The gradients in mu, scale, prior_mu and prior_scale, None where none is needed.

    `derivative`: dz/dscale, if it was kept, and whether to `overwrite` it.
    """
    plan, mu, scale, others, state, numbers = call
    options = plan.options
    need = [*need[:2], False, False] if grad_kl is None or not others else [*need[:4]]
    if options.num_samples < 0:
        grad_z = None
    if (grad_z is None and grad_kl is None) or not any(need):
        return (None,) * 4
    tensors = _in_schema(mu, scale, others, state)
    if by_reference(grad_z, grad_kl):
        return _twice_differentiable(tensors, options, need, grad_z, grad_kl)
    # A saved-tensor hook may have brought back what a kernel cannot read.
    plain = direct(grad_z, grad_kl, *tensors)
    if not isinstance(plan, Unplanned) and plain:
        found = plan.backward(
            grad_z, grad_kl, mu, scale, others, state, derivative, need, overwrite
        )
        return (*found, None, None)[:4]
    backend = plan.backend
    if plain:
        made = _backward.direct(backend, grad_z, grad_kl, *tensors, options, need)
    else:
        made = _backward.routed(backend, numbers, grad_z, grad_kl, *tensors, options, need)
    grads = iter(made)
    return [next(grads) if wanted else None for wanted in need]


def _share(upstream: Tensor, of: float | Tensor) -> Tensor:
    return (upstream * of).to(upstream.dtype)


def _balanced(
    mu: Tensor,
    scale: Tensor,
    others: Others,
    state: Tensor | None,
    options: Posterior,
    balance: float,
) -> tuple[Tensor | None, Tensor | None]:
    """As `_shared` has it, in plain PyTorch."""
    by: Any = reference.sample_kl
    call = _Call(None, mu, scale, others, state)
    parts = [_in_schema(*c[1:5]) for c in (call.apart(True), call.apart(False))]
    z, kl = by(*parts[0], options)
    _, same = by(*parts[1], options._replace(num_samples=-1))
    return z, (1 - balance) * kl + balance * same


def _twice_differentiable(
    tensors: Sequence[Tensor | None],
    options: Posterior,
    need: Sequence[bool],
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
) -> list[Tensor | None]:
    mask, weight, state, noise = tensors[4:]
    return reference_grads(
        lambda mu, scale, prior_mu, prior_scale: reference.sample_kl(
            mu, scale, prior_mu, prior_scale, mask, weight, state, noise, options
        ),
        tensors[:4],
        need,
        (grad_z, grad_kl),
    )


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    mu, options = args[0], args[8]
    z = mu.new_empty(z_shape(mu.shape, options.num_samples) if options.num_samples >= 0 else (0,))
    if not options.reduce:
        return z, mu.new_empty(0)
    return z, mu.new_empty(options.kl_shape(mu.shape), dtype=compute_dtype(*args[:4]))


def _backward_fake(*args: Any) -> list[Tensor]:
    parameters, need = args[2:6], args[-1]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t, n in zip(parameters, need, strict=True)
        if n
    ]


def _finish(results: tuple[Tensor | None, Tensor | None], mu: Tensor) -> tuple[Tensor, Tensor]:
    """An operator of torch returns tensors: none is one of no elements."""
    z, kl = results
    return mu.new_empty(0) if z is None else z, mu.new_empty(0) if kl is None else kl


_forward = Operator(
    "sample_kl", _TENSORS, Posterior, "(Tensor, Tensor)", _forward_fake, finish=_finish
)
_backward = Operator(
    "sample_kl_backward",
    f"Tensor? grad_z, Tensor? grad_kl, {_TENSORS}",
    Posterior,
    "Tensor[]",
    _backward_fake,
    also="bool[] need",
    module="sample_kl",
)
