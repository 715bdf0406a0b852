"""`sample_kl` by the compiled core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _C
from ..._args import PARAMS, compute_dtype
from .._options import Posterior
from ..layout import View, fitted
from ._pack import REDUCE, Packed, fresh, fresh_like, operand, pack, result, stream
from ._place import place

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
    kept: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """(z, kl), each None where `options` does not ask for it; dz/dscale is written to `kept`."""
    dtype = compute_dtype(mu, scale, prior_mu, prior_scale)
    operands = (mu, scale, prior_mu, prior_scale, mask, weight, noise)
    grid, packed, _alive = _pack(mu, operands, options)
    z = kl = None
    if options.num_samples > 0:
        z = fresh((options.num_samples, *mu.shape), mu.dtype, mu.device)
    elif options.num_samples == 0:
        z = fresh_like(mu)
    if options.reduce:
        kl = fresh(_kl_shape(mu.shape, options.reduce), dtype, mu.device)
    _C.sample_kl(
        grid,
        tuple(packed),
        stream(state, options.offset),
        _settings(options, dtype),
        result(z),
        0 if kl is None else kl.data_ptr(),
        0 if kept is None else kept.data_ptr(),
        torch.get_num_threads()
        if mu.is_cpu
        else place(mu, grid, REDUCE[options.reduce], target_rows=grid[0]),
    )
    return z, kl


def room_for_derivative(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    options: Posterior,
) -> Tensor | None:
    """Where the forward pass shall keep dz/dscale, or None where the noise is made anew.

    One buffer of the latent's size, which then becomes scale's gradient: the backward pass saves
    the noise and an exponential. docs/notes.md has both ways' times.
    """
    if options.num_samples != 0 or not mu.is_cpu:
        return None
    dtype = compute_dtype(mu, scale, prior_mu, prior_scale)
    return fresh_like(scale) if scale.dtype == dtype else None


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
    kept: Tensor | None = None,
    overwrite: bool = False,
) -> list[Tensor]:
    """The gradients in mu, scale, prior_mu and prior_scale that are needed.

    `overwrite` allows scale's gradient to take the place of `kept`.
    """
    dtype = compute_dtype(mu, scale, prior_mu, prior_scale)
    parameters = (mu, scale, prior_mu, prior_scale)
    per_place = options.reduce in ("elem", "dim")
    grid, packed, _alive = _pack(
        mu, (*parameters, mask, weight, noise, grad_z, grad_kl if per_place else None), options
    )
    upstream = packed[8]
    if grad_kl is not None and not per_place:
        step = grad_kl.stride(0) if options.reduce == "sample" else 0
        upstream = operand(View(grad_kl, grid[2], mu.shape[0] or 1, step, 0))
    reuse = (None, kept if overwrite else None, None, None)
    summed = [_summed(t, mu, place) for t, place in zip(parameters, packed[:4], strict=True)]
    grads = [
        None if t is None or not wanted else _gradient(t, mu, dtype, sums) if old is None else old
        for t, wanted, old, sums in zip(parameters, need, reuse, summed, strict=True)
    ]
    if grad_z is None:
        options = options._replace(num_samples=-1)
    _C.sample_kl_backward(
        grid,
        tuple(packed[:7]),
        stream(state, options.offset),
        _settings(options, dtype),
        packed[7],
        upstream,
        0 if kept is None else kept.data_ptr(),
        tuple(
            [
                (g.data_ptr(), 0, g[0].numel()) if sums and g is not None else result(g)
                for g, sums in zip(grads, summed, strict=True)
            ]
        ),
        torch.get_num_threads() if mu.is_cpu else place(mu, grid),
    )
    return fitted(grads, parameters)


# The core's kPriorBlocks.
_BLOCKS = 16


def _summed(parameter: Tensor | None, mu: Tensor, place: Packed | None) -> bool:
    """True where the kernel adds a parameter's gradient up over what it broadcasts to, into
    blocks that take no more memory than a gradient of mu's shape would."""
    return (
        parameter is not None
        and place is not None
        and parameter.shape != mu.shape
        and mu.is_cpu
        and 2 * _BLOCKS * parameter.numel() <= mu.numel()
        and parameter.is_contiguous()
        and place[0] == parameter.data_ptr()
    )


def _gradient(parameter: Tensor, mu: Tensor, dtype: torch.dtype, summed: bool = False) -> Tensor:
    """Room for a gradient of mu's shape; one that was broadcast is summed afterwards, and not in
    half precision: `dtype` is the arithmetic's."""
    if parameter.shape == mu.shape:
        return fresh_like(parameter)
    if summed:
        return torch.zeros(_BLOCKS, *parameter.shape, dtype=torch.float64, device="cpu")
    return fresh(mu.shape, dtype, mu.device)


def _pack(
    mu: Tensor, operands: Sequence[Tensor | None], options: Posterior
) -> tuple[tuple[int, int, int], list[Packed | None], object]:
    """As `pack`; several samples are a leading dimension, and the grid is one sample's."""
    samples = options.num_samples
    if samples <= 0:
        return pack(mu.shape, 1, operands)
    (rows, cols, segments), packed, alive = pack(torch.Size((samples, *mu.shape)), 2, operands)
    return (rows // samples, cols, segments), packed, alive


def _settings(options: Posterior, dtype: torch.dtype) -> tuple[object, ...]:
    (param, min_std, clamp), samples, temperature, _, reduce, factor = options
    low, high = clamp[:2] if clamp else (0.0, 0.0)
    return (
        _PARAM[param],
        min_std,
        len(clamp) - 1 if clamp else 0,
        low,
        high,
        1 if samples == 0 else max(samples, 0),
        temperature,
        REDUCE[reduce],
        factor,
        dtype == torch.float64,
    )


def _kl_shape(shape: torch.Size, reduce: str) -> tuple[int, ...]:
    if reduce == "sample":
        return (shape[0],)
    return {"elem": tuple(shape), "dim": tuple(shape[1:])}.get(reduce, ())
