"""The registered operator that samples a posterior and takes its KL, and its autograd function.

`rsample`, `gaussian_kl` and `sample_kl` are this one operator with one output or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends, random
from .._args import compute_dtype, grad_needed, operand
from ..backends._options import Posterior
from ..backends.reference import sample_kl as reference
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
from ._register import Operator, direct, settled

_TENSORS = (
    "Tensor mu, Tensor scale, Tensor? prior_mu, Tensor? prior_scale, Tensor? mask, "
    "Tensor? weight, Tensor? state, Tensor? noise"
)


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
) -> tuple[Tensor | None, Tensor | None]:
    """(z, kl) by the backend that serves, each None where `options` does not ask for it.

    `balance`: the prior's share of the KL's gradient, and what is left of 1 the posterior's.
    """
    backend = backends.select(mu.device)
    tensors = (mu, scale, prior_mu, prior_scale, mask, weight, state, noise)
    # Of several samples the first dimension is theirs, and the noise of each its own.
    order = memory_order(mu, 1) if options.num_samples <= 0 else None
    if order is not None and not needs_reference(weight, noise):
        return _in_order(order, tensors, options, balance)
    if by_plain_pytorch("sample_kl", backend, weight, noise):
        if balance is not None:
            return _balanced(tensors, options, balance)
        return reference.sample_kl(*tensors, options)
    options, numbers = settled(options)
    if grad_needed(mu, scale, prior_mu, prior_scale):
        share = None if balance is None else operand(balance)
        z, kl = _SampleKL.apply(*distinct(*tensors, numbers, options, backend, share))
    else:
        z, kl = _forward.call(backend, numbers, *tensors, options)
    return z if options.num_samples >= 0 else None, kl if options.reduce else None


def _in_order(
    order: tuple[int, ...],
    tensors: tuple[Tensor | None, ...],
    options: Posterior,
    balance: float | None,
) -> tuple[Tensor | None, Tensor | None]:
    """`run` of operands that lie in memory by this order of dimensions.

    Noise belongs to its place as it is counted: it is made there, and brought into the order.
    """
    *_, state, noise = tensors
    if state is not None:
        assert tensors[0] is not None
        dtype = compute_dtype(*tensors[:4])
        noise = random.normal(tensors[0].shape, state, dtype=dtype, offset=options.offset)
    mu, scale, prior_mu, prior_scale, mask, weight = (ordered(t, order) for t in tensors[:6])
    assert mu is not None and scale is not None
    z, kl = run(
        mu,
        scale,
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


class _SampleKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor | None, Tensor | None]:
        *tensors, numbers, options, backend, balance = args
        ctx.set_materialize_grads(False)
        ctx.options, ctx.backend, ctx.direct = options, backend, direct(*tensors)
        # A number that a compiler does not know is a tensor.
        open_balance = balance if isinstance(balance, Tensor) else None
        ctx.balance = balance if open_balance is None else None
        if not ctx.direct:
            keep(ctx, (*tensors, numbers, open_balance), (None,))
            z, kl = _forward.routed(backend, numbers, *tensors, options)
            _mark(ctx, z)
            return z, kl
        derivative = None
        if ctx.needs_input_grad[1]:
            module = backends.load(backend, "sample_kl")
            derivative = module.room_for_derivative(*tensors[:4], options)
        keep(ctx, (*tensors, None, open_balance), (derivative,))
        z, kl = _forward.direct(backend, *tensors, options, derivative)
        _mark(ctx, z)
        return z, kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> Any:
        (*tensors, numbers, open_balance), (derivative,), overwrite = kept(ctx, 10)
        balance = ctx.balance if open_balance is None else open_balance
        options, need = ctx.options, list(ctx.needs_input_grad[:4])
        if options.num_samples < 0:
            grad_z = None
        if not options.reduce:
            grad_kl = None
        how = (ctx.direct, ctx.backend, numbers, overwrite)
        found = gradients(tensors, derivative, options, need, grad_z, grad_kl, *how, balance)
        return (*found, *_NO_GRADS)


def gradients(
    tensors: Sequence[Tensor | None],
    derivative: Tensor | None,
    options: Posterior,
    need: list[bool],
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    was_direct: bool,
    backend: str,
    numbers: Tensor | None,
    overwrite: bool,
    balance: float | Tensor | None = None,
) -> Sequence[Tensor | None]:
    """The gradients in mu, scale, prior_mu and prior_scale, None where none is needed.

    `derivative`: dz/dscale, if it was kept, and whether to `overwrite` it.
    """
    if balance is not None and grad_kl is not None:
        # Two terms of one value: each has one side's gradients, and takes the other's parameters
        # for constants, to any order.
        posterior, prior = _apart(tensors)
        how = (was_direct, backend, numbers)
        share, own = _share(grad_kl, 1 - balance), [*need[:2], False, False]
        ours = gradients(posterior, derivative, options, own, grad_z, share, *how, overwrite)
        share, own = _share(grad_kl, balance), [False, False, *need[2:]]
        its = gradients(prior, None, options, own, None, share, *how, False)
        return (*ours[:2], *its[2:])
    if grad_kl is None:
        # The prior's parameters enter the KL alone.
        need[2:] = [False, False]
    if (grad_z is None and grad_kl is None) or not any(need):
        return (None,) * 4
    if by_reference(grad_z, grad_kl):
        return _twice_differentiable(tensors, options, need, grad_z, grad_kl)
    # A saved-tensor hook may have brought back what a kernel cannot read.
    if was_direct and direct(grad_z, grad_kl, *tensors):
        found = _backward.direct(
            backend, grad_z, grad_kl, *tensors, options, need, derivative, overwrite
        )
    else:
        found = _backward.routed(backend, numbers, grad_z, grad_kl, *tensors, options, need)
    grads = iter(found)
    return [next(grads) if wanted else None for wanted in need]


def _mark(ctx: Any, z: Tensor | None) -> None:
    """A sample does not depend on the prior: where that alone is learned, z has no gradient."""
    if z is not None and not any(ctx.needs_input_grad[:2]):
        ctx.mark_non_differentiable(z)


# For mask, weight, state, noise, numbers, options, backend and balance.
_NO_GRADS = (None,) * 8


_Tensors = Sequence[Tensor | None]


def _share(upstream: Tensor, of: float | Tensor) -> Tensor:
    return (upstream * of).to(upstream.dtype)


def _apart(tensors: _Tensors) -> tuple[_Tensors, _Tensors]:
    """The operands with the prior's parameters constant, and with the posterior's."""
    fixed = [None if t is None else t.detach() for t in tensors[:4]]
    rest = tensors[4:]
    return (*tensors[:2], *fixed[2:], *rest), (*fixed[:2], *tensors[2:4], *rest)


def _balanced(
    tensors: _Tensors, options: Posterior, balance: float
) -> tuple[Tensor | None, Tensor | None]:
    """As `gradients` has it, in plain PyTorch."""
    call: Any = reference.sample_kl
    posterior, prior = _apart(tensors)
    z, kl = call(*posterior, options)
    _, same = call(*prior, options._replace(num_samples=-1))
    return z, (1 - balance) * kl + balance * same


def _twice_differentiable(
    tensors: Sequence[Tensor | None],
    options: Posterior,
    need: list[bool],
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
    samples, how = options.num_samples, options.reduce
    z = mu.new_empty(z_shape(mu.shape, samples) if samples >= 0 else (0,))
    if not how:
        return z, mu.new_empty(0)
    return z, mu.new_empty(kl_shape(mu.shape, how), dtype=compute_dtype(*args[:4]))


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


def z_shape(shape: Sequence[int], num_samples: int) -> tuple[int, ...]:
    """Shape of z: mu's, behind a leading dimension where several samples are asked for."""
    return (num_samples, *shape) if num_samples > 0 else tuple(shape)


def kl_shape(shape: Sequence[int], how: str) -> tuple[int, ...]:
    """Shape of the KL for a posterior `[B, *latent]` under a kernel's reduction."""
    return {"elem": tuple(shape), "sample": tuple(shape[:1]), "dim": tuple(shape[1:])}.get(how, ())


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
