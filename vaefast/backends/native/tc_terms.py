"""`tc_terms` by the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _C
from .._options import Weighing
from ._place import place_with


def tc_terms(
    z: Tensor, mu: Tensor, logvar: Tensor, weighing: Weighing
) -> tuple[Tensor, Tensor, Tensor]:
    """The terms `[3, B]`, and the sums `[B]` and `[B, D]` that the backward pass needs."""
    z, mu, logvar = z.contiguous(), mu.contiguous(), logvar.contiguous()
    terms = z.new_empty((3, z.shape[0]))
    joint = z.new_empty(z.shape[0], dtype=torch.float64)
    marginals = torch.empty_like(z)
    call = (
        *_operands(z, mu, logvar, weighing, joint, marginals),
        terms.data_ptr(),
        z.dtype == torch.float64,
    )
    if z.is_cpu:
        _C.tc_terms(*call, torch.get_num_threads())
    else:
        _C.tc_terms(*call, place_with(z, _C.tc_terms_workspace(*call)))
    return terms, joint, marginals


def tc_terms_backward(
    upstream: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    joint: Tensor,
    marginals: Tensor,
    weighing: Weighing,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in z, mu and logvar."""
    z, mu, logvar, upstream = (t.contiguous() for t in (z, mu, logvar, upstream))
    grads = (torch.empty_like(z), torch.empty_like(mu), torch.empty_like(logvar))
    call = (
        *_operands(z, mu, logvar, weighing, joint, marginals),
        upstream.data_ptr(),
        (*(g.data_ptr() for g in grads), 0),
        z.dtype == torch.float64,
    )
    if z.is_cpu:
        _C.tc_terms_backward(*call, torch.get_num_threads())
    else:
        _C.tc_terms_backward(*call, place_with(z, _C.tc_terms_backward_workspace(*call)))
    return grads


def _operands(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    weighing: Weighing,
    joint: Tensor,
    marginals: Tensor,
) -> tuple[tuple[float, ...], ...]:
    return (
        (z.shape[0], *mu.shape),
        (z.data_ptr(), mu.data_ptr(), logvar.data_ptr(), 0),
        weighing,
        (joint.data_ptr(), marginals.data_ptr()),
    )
