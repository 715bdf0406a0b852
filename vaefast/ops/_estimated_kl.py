"""The registered operator that samples a posterior and estimates its KL at the samples, and its
autograd function.

One pass forward and one backward do what a sample, a `log_ratio` and the sum of z's two gradients
would: z is never read again, as the noise is made anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import compute_dtype, grad_needed
from ..backends._options import Posterior, z_shape
from ..backends.reference import estimated_kl as reference
from ._autograd import by_plain_pytorch, by_reference, distinct, keep, kept, reference_grads
from ._register import Operator, settled

_TENSORS = (
    "Tensor mu, Tensor scale, Tensor? prior_mu, Tensor? prior_scale, Tensor? state, Tensor? noise"
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
    backend = backends.select(mu.device, "estimated_kl", dtype=mu.dtype)
    tensors = (mu, scale, prior_mu, prior_scale, state, noise)
    if by_plain_pytorch("estimated_kl", backend, noise, like=mu):
        return reference.estimated_kl(*tensors, options, stop_posterior)
    options, numbers = settled(options)
    result: tuple[Tensor, Tensor]
    if grad_needed(mu, scale, prior_mu, prior_scale):
        result = _EstimatedKL.apply(*distinct(*tensors, numbers, options, stop_posterior, backend))
    else:
        result = _forward.call(backend, numbers, *tensors, options)
    return result


class _EstimatedKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        *tensors, numbers, options, stop_posterior, backend = args
        ctx.set_materialize_grads(False)
        keep(ctx, (*tensors, numbers))
        ctx.options, ctx.stop_posterior, ctx.backend = options, stop_posterior, backend
        z, kl = _forward.call(backend, numbers, *tensors, options)
        if not any(ctx.needs_input_grad[:2]):
            # A sample does not depend on the prior.
            ctx.mark_non_differentiable(z)
        return z, kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> Any:
        (*tensors, numbers), _, _ = kept(ctx, 7)
        need = list(ctx.needs_input_grad[:4])
        options, stop_posterior = ctx.options, ctx.stop_posterior
        if grad_kl is None:
            # The prior's parameters enter the KL alone.
            need[2:] = [False, False]
        if (grad_z is None and grad_kl is None) or not any(need):
            return (None,) * 10
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
        call = (grad_z, grad_kl, *tensors, options, stop_posterior, need)
        found = iter(_backward.call(ctx.backend, numbers, *call))
        return (*[next(found) if n else None for n in need], *_NO_GRADS)


# For state, noise, numbers, options, stop_posterior and backend.
_NO_GRADS = (None,) * 6


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    mu, options = args[0], args[6]
    z = mu.new_empty(z_shape(mu.shape, options.num_samples))
    lead = z.shape[: z.dim() - mu.dim() + 1]
    return z, mu.new_empty(lead, dtype=compute_dtype(*args[:4]))


def _backward_fake(*args: Any) -> list[Tensor]:
    parameters, need = args[2:6], args[-1]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t, n in zip(parameters, need, strict=True)
        if n
    ]


_forward = Operator("estimated_kl", _TENSORS, Posterior, "(Tensor, Tensor)", _forward_fake)
_backward = Operator(
    "estimated_kl_backward",
    f"Tensor? grad_z, Tensor? grad_kl, {_TENSORS}",
    Posterior,
    "Tensor[]",
    _backward_fake,
    also="bool stop_posterior, bool[] need",
    module="estimated_kl",
)
