"""The registered operator that samples a posterior and takes its KL, and its autograd function.

`rsample`, `gaussian_kl` and `sample_kl` are this one operator with one output or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import compute_dtype, grad_needed
from ..backends._options import Posterior, Transform
from ..backends.reference import sample_kl as reference
from ._autograd import by_reference, direct, keeps_graph, needs_reference, reference_grads

_lib = torch.library.Library("vaefast", "FRAGMENT")
_TENSORS = (
    "Tensor mu, Tensor scale, Tensor? prior_mu, Tensor? prior_scale, Tensor? mask, "
    "Tensor? weight, Tensor? state, Tensor? noise"
)
_SETTINGS = (
    "str param, float min_std, float[] clamp, int num_samples, float temperature, "
    "int offset, str reduce, float factor"
)
_lib.define(f"sample_kl({_TENSORS}, {_SETTINGS}, str backend) -> (Tensor, Tensor)")
_lib.define(
    f"sample_kl_backward(Tensor? grad_z, Tensor? grad_kl, {_TENSORS}, {_SETTINGS}, "
    "bool[] need, str backend) -> Tensor[]"
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
) -> tuple[Tensor | None, Tensor | None]:
    """(z, kl) by the backend that serves, each None where `options` does not ask for it."""
    backend = backends.select(mu.device)
    tensors = (mu, scale, prior_mu, prior_scale, mask, weight, state, noise)
    if backend == "reference" or needs_reference(weight, noise):
        return reference.sample_kl(*tensors, options)
    if grad_needed(mu, scale, prior_mu, prior_scale):
        z, kl = _SampleKL.apply(*tensors, options, backend)
    else:
        z, kl = _forward_direct(tensors, options, backend)
    return z if options.num_samples >= 0 else None, kl if options.reduce else None


class _SampleKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor | None, Tensor | None]:
        *tensors, options, backend = args
        ctx.set_materialize_grads(False)
        ctx.options, ctx.backend, ctx.direct = options, backend, direct(*tensors)
        if not ctx.direct:
            ctx.save_for_backward(*tensors, None)
            z, kl = torch.ops.vaefast.sample_kl(*tensors, *_flat(options), backend)
            _mark(ctx, z)
            return z, kl
        module = backends.load(backend, "sample_kl")
        kept = None
        if ctx.needs_input_grad[1]:
            kept = module.room_for_derivative(*tensors[:4], options)
        ctx.save_for_backward(*tensors, kept)
        z, kl = module.sample_kl(*tensors, options, kept)
        _mark(ctx, z)
        return z, kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> Any:
        *tensors, kept = ctx.saved_tensors
        options, need = ctx.options, list(ctx.needs_input_grad[:4])
        if options.num_samples < 0:
            grad_z = None
        if not options.reduce:
            grad_kl = None
        found = gradients(tensors, kept, options, need, grad_z, grad_kl, ctx.direct, ctx.backend)
        return (*found, *_NO_GRADS)


def gradients(
    tensors: Sequence[Tensor | None],
    kept: Tensor | None,
    options: Posterior,
    need: list[bool],
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    was_direct: bool,
    backend: str,
) -> Sequence[Tensor | None]:
    """The gradients in mu, scale, prior_mu and prior_scale, None where none is needed."""
    if grad_kl is None:
        # The prior's parameters enter the KL alone.
        need[2:] = [False, False]
    if (grad_z is None and grad_kl is None) or not any(need):
        return (None,) * 4
    if by_reference(grad_z, grad_kl):
        return _twice_differentiable(tensors, options, need, grad_z, grad_kl)
    if was_direct and direct(grad_z, grad_kl):
        module = backends.load(backend, "sample_kl")
        found = module.sample_kl_backward(
            grad_z, grad_kl, *tensors, options, need, kept, not keeps_graph()
        )
    else:
        found = torch.ops.vaefast.sample_kl_backward(
            grad_z, grad_kl, *tensors, *_flat(options), need, backend
        )
    grads = iter(found)
    return [next(grads) if wanted else None for wanted in need]


def _mark(ctx: Any, z: Tensor | None) -> None:
    """A sample does not depend on the prior: where that alone is learned, z has no gradient."""
    if z is not None and not any(ctx.needs_input_grad[:2]):
        ctx.mark_non_differentiable(z)


# For mask, weight, state, noise, options and backend.
_NO_GRADS = (None,) * 6


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


def _forward_direct(
    tensors: Sequence[Tensor | None], options: Posterior, backend: str
) -> tuple[Tensor | None, Tensor | None]:
    result: tuple[Tensor | None, Tensor | None]
    if direct(*tensors):
        result = backends.load(backend, "sample_kl").sample_kl(*tensors, options)
    else:
        result = torch.ops.vaefast.sample_kl(*tensors, *_flat(options), backend)
    return result


def _flat(options: Posterior) -> tuple[Any, ...]:
    return (*options.transform, *options[1:])


def _options(*settings: Any) -> Posterior:
    return Posterior(Transform(settings[0], settings[1], tuple(settings[2])), *settings[3:])


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    *tensors, param, min_std, clamp, samples, temperature, offset, how, factor, backend = args
    options = _options(param, min_std, clamp, samples, temperature, offset, how, factor)
    z, kl = backends.load(backend, "sample_kl").sample_kl(*tensors, options)
    mu = tensors[0]
    return (mu.new_empty(0) if z is None else z, mu.new_empty(0) if kl is None else kl)


def _backward(*args: Any) -> list[Tensor]:
    *tensors, param, min_std, clamp, samples, temperature, offset, how, factor, need, backend = args
    options = _options(param, min_std, clamp, samples, temperature, offset, how, factor)
    module = backends.load(backend, "sample_kl")
    grads: list[Tensor] = module.sample_kl_backward(*tensors, options, need)
    return grads


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    mu, scale, prior_mu, prior_scale = args[:4]
    num_samples, how = args[11], args[14]
    z = mu.new_empty(z_shape(mu.shape, num_samples) if num_samples >= 0 else (0,))
    if not how:
        return z, mu.new_empty(0)
    dtype = compute_dtype(mu, scale, prior_mu, prior_scale)
    return z, mu.new_empty(kl_shape(mu.shape, how), dtype=dtype)


def _backward_fake(*args: Any) -> list[Tensor]:
    parameters, need = args[2:6], args[18]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t, n in zip(parameters, need, strict=True)
        if n
    ]


def z_shape(shape: Sequence[int], num_samples: int) -> tuple[int, ...]:
    """Shape of z: mu's, behind a leading dimension where several samples are asked for."""
    return (num_samples, *shape) if num_samples > 0 else tuple(shape)


def kl_shape(shape: Sequence[int], how: str) -> tuple[int, ...]:
    """Shape of the KL for a posterior `[B, *latent]` under a kernel's reduction."""
    return {"elem": tuple(shape), "sample": tuple(shape[:1]), "dim": tuple(shape[1:])}.get(how, ())


_lib.impl("sample_kl", _forward, "CompositeExplicitAutograd")
_lib.impl("sample_kl_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vaefast::sample_kl", _forward_fake, lib=_lib)
torch.library.register_fake("vaefast::sample_kl_backward", _backward_fake, lib=_lib)
