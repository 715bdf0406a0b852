"""`sample_monte_carlo_kl` by the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _C
from ..._args import compute_dtype
from .._options import Posterior
from ..layout import View, fitted
from ._pack import fresh, fresh_like, operand, result, state_of
from ._place import place, place_with
from ._posterior import gradient, pack_samples, settings_of


def sample_monte_carlo_kl(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    state: Tensor | None,
    noise: Tensor | None,
    options: Posterior,
) -> tuple[Tensor, Tensor]:
    """(z, kl): kl is `[K, B]` for z `[K, B, *latent]`, or `[B]` for z `[B, *latent]`."""
    dtype = compute_dtype(mu, scale, prior_mu, prior_scale)
    operands = (mu, scale, prior_mu, prior_scale, None, None, noise)
    grid, packed, _alive = pack_samples(mu, operands, options)
    lead = mu.shape[:1]
    if options.num_samples:
        z = fresh((options.num_samples, *mu.shape), mu.dtype, mu.device)
        lead = z.shape[:2]
    else:
        z = fresh_like(mu)
    kl = torch.empty(lead, dtype=dtype, device=mu.device)
    call = (
        grid,
        tuple(packed),
        state_of(state, options.offset),
        settings_of(options, dtype),
        result(z),
        kl.data_ptr(),
    )
    if mu.is_cpu:
        _C.sample_monte_carlo_kl(*call, torch.get_num_threads())
    else:
        where = place_with(mu, _C.sample_monte_carlo_kl_workspace(*call))
        _C.sample_monte_carlo_kl(*call, where)
    return z, kl


def sample_monte_carlo_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    state: Tensor | None,
    noise: Tensor | None,
    options: Posterior,
    stop_posterior: bool,
    need: list[bool],
) -> list[Tensor]:
    """The gradients in mu, scale, prior_mu and prior_scale that are needed."""
    parameters = (mu, scale, prior_mu, prior_scale)
    dtype = compute_dtype(*parameters)
    operands = (*parameters, None, None, noise, grad_z)
    grid, packed, _alive = pack_samples(mu, operands, options)
    upstream = None
    if grad_kl is not None:
        # One value for all of a sample's rows.
        flat = grad_kl.reshape(-1)
        upstream = operand(View(flat, grid[2], len(flat), flat.stride(0), 0))
    grads = [
        gradient(t, mu, dtype) if t is not None and n else None
        for t, n in zip(parameters, need, strict=True)
    ]
    _C.sample_monte_carlo_kl_backward(
        grid,
        tuple(packed[:7]),
        state_of(state, options.offset),
        settings_of(options, dtype),
        stop_posterior,
        packed[7],
        upstream,
        tuple([result(g) for g in grads]),
        torch.get_num_threads() if mu.is_cpu else place(mu, grid),
    )
    return fitted(grads, parameters)
