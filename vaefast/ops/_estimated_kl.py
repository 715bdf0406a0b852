"""The registered operator that samples a posterior and estimates its KL at the samples, and its
autograd function.

One pass forward and one backward do what a sample, a `log_ratio` and the sum of z's two gradients
would: z is never read again, as the noise is made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import compute_dtype, grad_needed
from ..backends._options import Posterior, Transform
from ..backends.reference import estimated_kl as reference
from ._autograd import by_reference, direct, needs_reference, reference_grads
from ._sample_kl import z_shape

_lib = torch.library.Library("vaefast", "FRAGMENT")
_TENSORS = (
    "Tensor mu, Tensor scale, Tensor? prior_mu, Tensor? prior_scale, Tensor? state, Tensor? noise"
)
_SETTINGS = (
    "str param, float min_std, float[] clamp, int num_samples, float temperature, int offset"
)
_lib.define(f"estimated_kl({_TENSORS}, {_SETTINGS}, str backend) -> (Tensor, Tensor)")
_lib.define(
    f"estimated_kl_backward(Tensor? grad_z, Tensor? grad_kl, {_TENSORS}, {_SETTINGS}, "
    "bool stop_posterior, bool[] need, str backend) -> Tensor[]"
)


def run(
    mu: Tensor,
    scale: Tensor,
    options: Posterior,
    *,
    prior_mu: Tensor | None = None,
    prior_scale: Tensor | None = None,
    state: Tensor | None = None,
    noise: Tensor | None = None,
    stop_posterior: bool = False,
) -> tuple[Tensor, Tensor]:
    """(z, log q(z|x) - log p(z)) by the backend that serves."""
    backend = backends.select(mu.device)
    tensors = (mu, scale, prior_mu, prior_scale, state, noise)
    if backend == "reference" or needs_reference(noise) or not mu.numel():
        return reference.estimated_kl(*tensors, options, stop_posterior)
    if grad_needed(mu, scale, prior_mu, prior_scale):
        result: tuple[Tensor, Tensor]
        result = _EstimatedKL.apply(*tensors, options, stop_posterior, backend)
        return result
    return _call(tensors, options, backend)


class _EstimatedKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        *tensors, options, stop_posterior, backend = args
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.options, ctx.stop_posterior, ctx.backend = options, stop_posterior, backend
        z, kl = _call(tensors, options, backend)
        if not any(ctx.needs_input_grad[:2]):
            # A sample does not depend on the prior.
            ctx.mark_non_differentiable(z)
        return z, kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> Any:
        tensors, need = ctx.saved_tensors, list(ctx.needs_input_grad[:4])
        options, stop_posterior = ctx.options, ctx.stop_posterior
        if grad_kl is None:
            # The prior's parameters enter the KL alone.
            need[2:] = [False, False]
        if (grad_z is None and grad_kl is None) or not any(need):
            return (None,) * 9
        if by_reference(grad_z, grad_kl):
            state, noise = tensors[4:]
            grads = reference_grads(
                lambda mu, scale, prior_mu, prior_scale: reference.estimated_kl(
                    mu, scale, prior_mu, prior_scale, state, noise, options, stop_posterior
                ),
                tensors[:4],
                need,
                (grad_z, grad_kl),
            )
            return (*grads, *_NO_GRADS)
        if direct(grad_z, grad_kl, *tensors):
            module = backends.load(ctx.backend, "estimated_kl")
            made = module.estimated_kl_backward(
                grad_z, grad_kl, *tensors, options, stop_posterior, need
            )
        else:
            made = torch.ops.vaefast.estimated_kl_backward(
                grad_z, grad_kl, *tensors, *_flat(options), stop_posterior, need, ctx.backend
            )
        found = iter(made)
        return (*[next(found) if n else None for n in need], *_NO_GRADS)


# For state, noise, options, stop_posterior and backend.
_NO_GRADS = (None,) * 5


def _call(
    tensors: Sequence[Tensor | None], options: Posterior, backend: str
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor]
    if direct(*tensors):
        result = backends.load(backend, "estimated_kl").estimated_kl(*tensors, options)
    else:
        result = torch.ops.vaefast.estimated_kl(*tensors, *_flat(options), backend)
    return result


def _flat(options: Posterior) -> tuple[Any, ...]:
    return (*options.transform, options.num_samples, options.temperature, options.offset)


def _options(
    param: str,
    min_std: float,
    clamp: Sequence[float],
    num_samples: int,
    temperature: float,
    offset: int,
) -> Posterior:
    transform = Transform(param, min_std, tuple(clamp))
    return Posterior(transform, num_samples, temperature, offset, "sample", 1.0)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    tensors, settings, backend = args[:6], args[6:12], args[12]
    module = backends.load(backend, "estimated_kl")
    result: tuple[Tensor, Tensor] = module.estimated_kl(*tensors, _options(*settings))
    return result


def _backward(*args: Any) -> list[Tensor]:
    tensors, settings, (stop_posterior, need, backend) = args[:8], args[8:14], args[14:]
    module = backends.load(backend, "estimated_kl")
    grads: list[Tensor] = module.estimated_kl_backward(
        *tensors, _options(*settings), stop_posterior, need
    )
    return grads


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    mu, num_samples = args[0], args[9]
    z = mu.new_empty(z_shape(mu.shape, num_samples))
    lead = z.shape[: z.dim() - mu.dim() + 1]
    return z, mu.new_empty(lead, dtype=compute_dtype(*args[:4]))


def _backward_fake(*args: Any) -> list[Tensor]:
    parameters, need = args[2:6], args[15]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t, n in zip(parameters, need, strict=True)
        if n
    ]


_lib.impl("estimated_kl", _forward, "CompositeExplicitAutograd")
_lib.impl("estimated_kl_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("vaefast::estimated_kl", _forward_fake, lib=_lib)
torch.library.register_fake("vaefast::estimated_kl_backward", _backward_fake, lib=_lib)
