"""The registered operator of log q(z|x) - log p(z) at given samples, and its autograd function.

`log_weights` and `monte_carlo_kl` stand on it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from .. import _args, backends
from .._args import compute_dtype, grad_needed
from .._torch import apply_of
from ..backends._options import Transform
from ..backends.reference import monte_carlo_kl as reference
from . import _plans
from ._autograd import by_plain_pytorch, by_reference, distinct, keep, kept, reference_grads
from ._register import Operator

_TENSORS = "Tensor z, Tensor mu, Tensor scale, Tensor? prior_mu, Tensor? prior_scale"


def check_samples(z: Tensor, mu: Tensor) -> None:
    """Raises unless z is `[K, B, *latent]` or `[B, *latent]` for mu `[B, *latent]`."""
    _args.float_tensor("z", z)
    # Shapes of different lengths are not compared: an exporter would take K = B for excluded.
    own = z.shape[1:] if z.dim() == mu.dim() + 1 else z.shape
    if own != mu.shape:
        raise ValueError(
            f"z must have mu's shape, {list(mu.shape)}, or that behind a leading sample "
            f"dimension, got {list(z.shape)}"
        )
    _args.same_device("mu", mu, z=z)


def run(
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    transform: Transform,
    *,
    prior_mu: Tensor | None = None,
    prior_scale: Tensor | None = None,
    prior: bool = True,
    key: Hashable | None = None,
) -> Tensor:
    """log q(z|x) - log p(z), or log q(z|x) where `prior` is False: `[K, B]`, or `[B]`. `key`: what
    the call's plan may be kept under."""
    if z.dim() == mu.dim():
        options = {"prior_mu": prior_mu, "prior_scale": prior_scale}
        one = z.unsqueeze(0)
        return run(one, mu, scale, transform, prior=prior, key=key, **options).squeeze(0)
    tensors = (z, mu, scale, prior_mu, prior_scale)
    backend = backends.select(z.device, "monte_carlo_kl", dtype=z.dtype)
    if by_plain_pytorch("monte_carlo_kl", backend, like=z):
        return reference.monte_carlo_kl(*tensors, transform, prior)
    plan, numbers = _plans.settings_of("monte_carlo_kl", backend, tensors, (transform, prior), key)
    if plan.planned:
        return run_found(plan, *tensors)
    if grad_needed(*tensors):
        value: Tensor = _MonteCarloKlFunction.apply(*distinct(plan, *tensors, numbers))
    else:
        value = plan.run(_forward, tensors, numbers)
    return value


def run_found(
    plan: _plans.Settings,
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None = None,
    prior_scale: Tensor | None = None,
) -> Tensor:
    """As `run`, by a plan."""
    if z.dim() == mu.dim():
        return run_found(plan, z.unsqueeze(0), mu, scale, prior_mu, prior_scale).squeeze(0)
    tensors = (z, mu, scale, prior_mu, prior_scale)
    if grad_needed(*tensors):
        value: Tensor = _apply(plan, *tensors, None)
    else:
        value = plan.run(_forward, tensors)
    return value


class _MonteCarloKlFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Any, *args: Any) -> Tensor:
        *tensors, numbers = args
        keep(ctx, (*tensors, numbers))
        ctx.plan = plan
        value: Tensor = plan.run(_forward, tensors, numbers)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (*tensors, numbers), _, _ = kept(ctx, 6)
        need = list(ctx.needs_input_grad[1:6])
        transform, prior = ctx.plan.options
        if by_reference(upstream):
            grads = reference_grads(
                lambda z, mu, scale, prior_mu, prior_scale: (
                    reference.monte_carlo_kl(z, mu, scale, prior_mu, prior_scale, transform, prior),
                ),
                tensors,
                need,
                (upstream,),
            )
            return (None, *grads, None)
        call = (upstream, *tensors, transform, prior, need)
        found = iter(_backward.call(ctx.plan.backend, numbers, *call))
        return (None, *[next(found) if n else None for n in need], None)


_apply = apply_of(_MonteCarloKlFunction)


def _forward_fake(*args: Any) -> Tensor:
    z: Tensor = args[0]
    return z.new_empty(z.shape[:2], dtype=compute_dtype(*args[:5]))


def _backward_fake(*args: Any) -> list[Tensor]:
    tensors, need = args[1:6], args[-1]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t, n in zip(tensors, need, strict=True)
        if n
    ]


_forward = Operator(
    "monte_carlo_kl", _TENSORS, Transform, "Tensor", _forward_fake, also="bool prior"
)
_backward = Operator(
    "monte_carlo_kl_backward",
    f"Tensor upstream, {_TENSORS}",
    Transform,
    "Tensor[]",
    _backward_fake,
    also="bool prior, bool[] need",
    module="monte_carlo_kl",
)
