"""The gradients of a sample and its KL, whole or shared between posterior and prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..backends._options import Posterior
from ..backends.reference import sample_kl as reference
from ._autograd import by_reference, reference_grads
from ._register import direct
from ._sample_kl_operator import Others, Unplanned, backward, in_schema


class Call(NamedTuple):
    """What a backward pass finds of its forward pass. `numbers`: those that a compiler does not
    know of the options."""

    plan: Any
    mu: Tensor
    scale: Tensor
    others: Others
    state: Tensor | None
    numbers: Tensor | None = None

    def apart(self, posterior: bool) -> Call:
        """With the parameters constant of the prior, or else those of the posterior."""
        if posterior:
            fixed = [None if t is None else t.detach() for t in self.others[:2]]
            return self._replace(others=(*fixed, *self.others[2:]))
        return self._replace(mu=self.mu.detach(), scale=self.scale.detach())


def shared(
    call: Call,
    need: Sequence[bool],
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    derivative: Tensor | None,
    overwrite: bool,
    balance: float | Tensor | None,
) -> Sequence[Tensor | None]:
    """As `gradients`; `balance` of the KL's goes to the prior, what is left to the posterior."""
    if balance is None or grad_kl is None:
        return gradients(call, need[:4], grad_z, grad_kl, derivative, overwrite)
    # Two terms of one value: each has one side's gradients, and takes the other's parameters for
    # constants, to any order.
    ours, its = ((_share(grad_kl, s)) for s in (1 - balance, balance))
    own = (*need[:2], False, False)
    posterior = gradients(call.apart(True), own, grad_z, ours, derivative, overwrite)
    own = (False, False, *need[2:4])
    prior = gradients(call.apart(False), own, None, its, None, False)
    return (*posterior[:2], *prior[2:])


def gradients(
    call: Call,
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
    tensors = in_schema(mu, scale, others, state)
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
        made = backward.direct(backend, grad_z, grad_kl, *tensors, options, need)
    else:
        made = backward.routed(backend, numbers, grad_z, grad_kl, *tensors, options, need)
    grads = iter(made)
    return [next(grads) if wanted else None for wanted in need]


def _share(upstream: Tensor, of: float | Tensor) -> Tensor:
    return (upstream * of).to(upstream.dtype)


def balanced(
    mu: Tensor,
    scale: Tensor,
    others: Others,
    state: Tensor | None,
    options: Posterior,
    balance: float,
) -> tuple[Tensor | None, Tensor | None]:
    """As `shared` has it, in plain PyTorch."""
    by: Any = reference.sample_kl
    call = Call(None, mu, scale, others, state)
    parts = [in_schema(*c[1:5]) for c in (call.apart(True), call.apart(False))]
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
