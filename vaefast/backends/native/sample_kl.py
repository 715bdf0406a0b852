"""`sample_kl` by the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _C
from ..._args import PARAMS, compute_dtype
from .._options import Posterior
from ..layout import Plan, View, plan
from ._pack import REDUCE, fresh, fresh_like, operand, result, stream

_PARAM = {name: index for index, name in enumerate(PARAMS)}


def sample_kl(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    noise: Tensor | None,
    options: Posterior,
) -> tuple[Tensor | None, Tensor | None]:
    """(z, kl), each None where `options` does not ask for it."""
    dtype = compute_dtype(mu, scale, prior_mu, prior_scale)
    operands = (mu, scale, prior_mu, prior_scale, mask, weight, noise)
    grid = _plan(mu, operands, options)
    z = kl = None
    if options.num_samples >= 0:
        if options.num_samples:
            z = fresh((options.num_samples, *mu.shape), mu.dtype, mu.device)
        else:
            z = fresh_like(mu)
    if options.reduce:
        kl = fresh(_kl_shape(mu.shape, options.reduce), dtype, mu.device)
    _C.sample_kl(
        _grid(grid, options),
        tuple(map(operand, grid.views)),
        stream(state, options.offset),
        _settings(options, dtype),
        result(z),
        0 if kl is None else kl.data_ptr(),
        torch.get_num_threads(),
    )
    return z, kl


def sample_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    noise: Tensor | None,
    options: Posterior,
    need: list[bool],
) -> list[Tensor]:
    """The gradients in mu, scale, prior_mu and prior_scale that are needed."""
    dtype = compute_dtype(mu, scale, prior_mu, prior_scale)
    parameters = (mu, scale, prior_mu, prior_scale)
    per_place = options.reduce in ("elem", "dim")
    grid = _plan(
        mu, (*parameters, mask, weight, noise, grad_z, grad_kl if per_place else None), options
    )
    upstream = grid.views[8]
    if grad_kl is not None and not per_place:
        step = grad_kl.stride(0) if options.reduce == "sample" else 0
        upstream = View(grad_kl, grid.segments, max(mu.shape[0], 1), step, 0)
    grads = [
        None
        if t is None or not wanted
        else fresh_like(t)
        if t.shape == mu.shape
        else fresh(mu.shape, t.dtype, mu.device)
        for t, wanted in zip(parameters, need, strict=True)
    ]
    if grad_z is None:
        options = options._replace(num_samples=-1)
    _C.sample_kl_backward(
        _grid(grid, options),
        tuple(map(operand, grid.views[:7])),
        stream(state, options.offset),
        _settings(options, dtype),
        operand(grid.views[7]),
        operand(upstream),
        tuple(map(result, grads)),
        torch.get_num_threads(),
    )
    return [
        g if g.shape == t.shape else g.sum_to_size(t.shape)
        for g, t in zip(grads, parameters, strict=True)
        if g is not None and t is not None
    ]


def _plan(mu: Tensor, operands: tuple[Tensor | None, ...], options: Posterior) -> Plan:
    samples = options.num_samples
    if samples <= 0:
        return plan(mu.shape, 1, operands)
    return plan((samples, *mu.shape), 2, operands)


def _grid(grid: Plan, options: Posterior) -> tuple[int, int, int]:
    """The rows of one [B, *latent] tensor."""
    return grid.rows // max(options.num_samples, 1), grid.cols, grid.segments


def _settings(options: Posterior, dtype: torch.dtype) -> tuple[object, ...]:
    transform = options.transform
    low, high = transform.clamp[:2] if transform.clamp else (0.0, 0.0)
    return (
        _PARAM[transform.param],
        transform.min_std,
        max(len(transform.clamp) - 1, 0),
        low,
        high,
        1 if options.num_samples == 0 else max(options.num_samples, 0),
        options.temperature,
        REDUCE[options.reduce],
        options.factor,
        dtype == torch.float64,
    )


def _kl_shape(shape: torch.Size, reduce: str) -> tuple[int, ...]:
    return {"elem": tuple(shape), "sample": tuple(shape[:1]), "dim": tuple(shape[1:])}.get(
        reduce, ()
    )
