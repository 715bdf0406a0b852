"""`sample_kl` by Triton: one launch forward (two where sums span programs), one backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._args import compute_dtype
from .._options import Posterior, z_shape
from ..layout import View, fitted
from . import _sample_kl
from ._grid import Work, launch, share
from ._posterior import numbers, settings
from ._sums import room


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
    z = kl = None
    if options.num_samples >= 0:
        z = torch.empty(z_shape(mu.shape, options.num_samples), dtype=mu.dtype, device=mu.device)
    if options.reduce:
        kl = torch.empty(options.kl_shape(mu.shape), dtype=dtype, device=mu.device)
    if not mu.numel():
        return z, kl if kl is None else kl.zero_().mul_(options.factor)
    tensors = (mu, scale, prior_mu, prior_scale, mask, weight, noise)
    over = options.reduce if options.reduce != "elem" else ""
    work = _share(mu, tensors, dtype, over, state, options)
    sums = None
    if kl is not None and over:
        sums = room(work, over, over, kl, options.factor)
    launch(
        _sample_kl.forward,
        work.programs,
        mu.device,
        z,
        kl if sums is None else sums.to,
        *work.operands[:7],
        state if z is not None else None,
        options.offset,
        *work.sizes,
        *_numbers(options, options.factor if sums is None else sums.now),
        REDUCE=options.reduce,
        maxnreg=_registers(z, prior_scale, dtype, options),
        **_settings(work, options, state),
    )
    if sums is not None:
        sums.finish()
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
    need: Sequence[bool],
) -> list[Tensor]:
    """The gradients in mu, scale, prior_mu and prior_scale that are needed."""
    dtype = compute_dtype(mu, scale, prior_mu, prior_scale)
    parameters = (mu, scale, prior_mu, prior_scale)
    grads = [
        None
        if t is None or not wanted
        # One that was broadcast is summed afterwards, and not in half precision.
        else torch.empty(
            mu.shape, dtype=t.dtype if t.shape == mu.shape else dtype, device=mu.device
        )
        for t, wanted in zip(parameters, need, strict=True)
    ]
    if mu.numel():
        per_place = options.reduce in ("elem", "dim")
        extra = None
        if grad_kl is not None and not per_place:
            # One number per sample, or for all; `_share` fits it to the segments.
            extra = grad_kl
        if grad_z is None:
            options = options._replace(num_samples=-1)
            noise = state = None
        tensors = (*parameters, mask, weight, noise, grad_z, grad_kl if per_place else None)
        work = _share(mu, tensors, dtype, "", state, options, extra)
        operands = work.operands
        launch(
            _sample_kl.backward,
            work.programs,
            mu.device,
            *grads,
            operands[7],
            operands[8] or operands[9],
            *operands[:7],
            state,
            options.offset,
            *work.sizes,
            *_numbers(options, options.factor),
            **_settings(work, options, state),
        )
    return fitted(grads, parameters)


def _share(
    mu: Tensor,
    tensors: tuple[Tensor | None, ...],
    dtype: torch.dtype,
    over: str,
    state: Tensor | None,
    options: Posterior,
    upstream: Tensor | None = None,
) -> Work:
    """The work; several samples are a leading dimension, which the kernel itself walks."""
    copies = max(options.num_samples, 1)
    leading = options.num_samples > 0
    extra = None
    if upstream is not None:
        step = upstream.stride(0) if upstream.dim() else 0
        # rows / B segments to a sample: `share` knows how many, and sets the view's `div`.
        extra = View(upstream, 0, max(mu.shape[0], 1) if step else 1, step, 0)
    return share(
        (options.num_samples, *mu.shape) if leading else mu.shape,
        2 if leading else 1,
        tensors,
        dtype,
        over,
        copies=copies,
        rowwise=state is not None and state.dim() > 1,
        extra=extra,
    )


def _registers(
    z: Tensor | None, prior_scale: Tensor | None, dtype: torch.dtype, options: Posterior
) -> int | None:
    """Left alone, ptxas spills two values of the plainest KL to have 40 registers (sm_100)."""
    param, _, clamp = options.transform
    plain = z is None and prior_scale is None and param == "logvar" and len(clamp) < 3
    return 56 if plain and dtype == torch.float32 else None


def _numbers(options: Posterior, factor: float) -> tuple[float, ...]:
    return max(options.num_samples, 1), options.temperature, *numbers(options.transform), factor


def _settings(work: Work, options: Posterior, state: Tensor | None) -> dict[str, object]:
    return {
        **settings(options.transform),
        "PER_SAMPLE": state is not None and state.dim() > 1,
        "ALIGNED": work.cols % 4 == 0,
        **work.meta,
    }
