"""The registered operator that samples a posterior and estimates its KL at the samples, and its
autograd function.

One pass forward and one backward do what a sample, `monte_carlo_kl` and the sum of z's two
gradients would: z is never read again, as the noise is made anew.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import compute_dtype, grad_needed
from .._torch import apply_of
from ..backends._options import Posterior, z_shape
from ..backends.reference import sample_monte_carlo_kl as reference
from . import _plans
from ._autograd import by_plain_pytorch, by_reference, distinct, keep, kept, reference_grads
from ._register import Operator

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
    key: Hashable | None = None,
) -> tuple[Tensor, Tensor]:
    """(z, log q(z|x) - log p(z)) by the backend that serves. `key`: what the call's plan may be
    kept under."""
    backend = backends.select(mu.device, "sample_monte_carlo_kl", dtype=mu.dtype)
    tensors = (mu, scale, prior_mu, prior_scale, state, noise)
    if by_plain_pytorch("sample_monte_carlo_kl", backend, noise, like=mu):
        return reference.sample_monte_carlo_kl(*tensors, options, stop_posterior)
    plan, numbers = _plans.settings_of("sample_monte_carlo_kl", backend, tensors, (options,), key)
    result: tuple[Tensor, Tensor]
    if plan.planned:
        return run_found(plan, *tensors, stop_posterior)
    if grad_needed(mu, scale, prior_mu, prior_scale):
        result = _SampleMonteCarloKlFunction.apply(
            *distinct(plan, stop_posterior, *tensors, numbers)
        )
    else:
        result = plan.run(_forward, tensors, numbers)
    return result


def run_found(
    plan: _plans.Settings,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    state: Tensor | None,
    noise: Tensor | None,
    stop_posterior: bool,
) -> tuple[Tensor, Tensor]:
    """(z, log q(z|x) - log p(z)) by a plan."""
    tensors = (mu, scale, prior_mu, prior_scale, state, noise)
    result: tuple[Tensor, Tensor]
    if grad_needed(mu, scale, prior_mu, prior_scale):
        result = _apply(plan, stop_posterior, *tensors, None)
    else:
        result = plan.run(_forward, tensors)
    return result


class _SampleMonteCarloKlFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Any, stop_posterior: bool, *args: Any) -> tuple[Tensor, Tensor]:
        *tensors, numbers = args
        ctx.set_materialize_grads(False)
        keep(ctx, (*tensors, numbers))
        ctx.plan, ctx.stop_posterior = plan, stop_posterior
        z, kl = plan.run(_forward, tensors, numbers)
        if not any(ctx.needs_input_grad[2:4]):
            # A sample does not depend on the prior.
            ctx.mark_non_differentiable(z)
        return z, kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> Any:
        (*tensors, numbers), _, _ = kept(ctx, 7)
        need = list(ctx.needs_input_grad[2:6])
        (options,), stop_posterior = ctx.plan.options, ctx.stop_posterior
        if grad_kl is None:
            # The prior's parameters enter the KL alone.
            need[2:] = [False, False]
        if (grad_z is None and grad_kl is None) or not any(need):
            return (None,) * 9
        if by_reference(grad_z, grad_kl):
            state, noise = tensors[4:]
            grads = reference_grads(
                lambda mu, scale, prior_mu, prior_scale: reference.sample_monte_carlo_kl(
                    mu, scale, prior_mu, prior_scale, state, noise, options, stop_posterior
                ),
                tensors[:4],
                need,
                (grad_z, grad_kl),
            )
            return (None, None, *grads, None, None, None)
        call = (grad_z, grad_kl, *tensors, options, stop_posterior, need)
        found = iter(_backward.call(ctx.plan.backend, numbers, *call))
        return (None, None, *[next(found) if n else None for n in need], None, None, None)


_apply = apply_of(_SampleMonteCarloKlFunction)


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


_forward = Operator("sample_monte_carlo_kl", _TENSORS, Posterior, "(Tensor, Tensor)", _forward_fake)
_backward = Operator(
    "sample_monte_carlo_kl_backward",
    f"Tensor? grad_z, Tensor? grad_kl, {_TENSORS}",
    Posterior,
    "Tensor[]",
    _backward_fake,
    also="bool stop_posterior, bool[] need",
    module="sample_monte_carlo_kl",
)
