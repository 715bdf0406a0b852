"""`mixture_log_prob` by the compiled core."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import _C
from ._place import place_with


def mixture_log_prob(
    z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The log density `[B]`, and what the backward pass needs of it."""
    z, mu, logvar = z.contiguous(), mu.contiguous(), logvar.contiguous()
    weights = None if log_weights is None else log_weights.contiguous()
    values = z.new_empty(z.shape[0])
    joint = z.new_empty(z.shape[0], dtype=torch.float64)
    call = (
        *_operands(z, mu, logvar, weights, joint),
        values.data_ptr(),
        z.dtype == torch.float64,
    )
    if z.is_cpu:
        _C.mixture_log_prob(*call, torch.get_num_threads())
    else:
        _C.mixture_log_prob(*call, place_with(z, _C.mixture_log_prob_workspace(*call)))
    return values, joint


def mixture_log_prob_backward(
    upstream: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    joint: Tensor,
) -> list[Tensor]:
    """The gradients in z, mu, logvar and, where there are any, the weights."""
    z, mu, logvar, upstream = (t.contiguous() for t in (z, mu, logvar, upstream))
    weights = None if log_weights is None else log_weights.contiguous()
    grads = [torch.empty_like(t) for t in (z, mu, logvar, weights) if t is not None]
    addresses = [g.data_ptr() for g in grads]
    call = (
        *_operands(z, mu, logvar, weights, joint),
        upstream.data_ptr(),
        (*addresses, *[0] * (4 - len(addresses))),
        z.dtype == torch.float64,
    )
    if z.is_cpu:
        _C.mixture_log_prob_backward(*call, torch.get_num_threads())
    else:
        size = _C.mixture_log_prob_backward_workspace(*call)
        _C.mixture_log_prob_backward(*call, place_with(z, size))
    return grads


def _operands(
    z: Tensor, mu: Tensor, logvar: Tensor, weights: Tensor | None, joint: Tensor
) -> tuple[tuple[float, ...], ...]:
    components, dims = mu.shape
    shared, address = -math.log(components), 0
    if weights is not None:
        shared, address = 0.0, weights.data_ptr()
    return (
        (z.shape[0], components, dims),
        (z.data_ptr(), mu.data_ptr(), logvar.data_ptr(), address),
        (shared, 0, 1.0, 1.0),
        (joint.data_ptr(), 0),
    )
