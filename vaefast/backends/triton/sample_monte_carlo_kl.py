"""`sample_monte_carlo_kl` by Triton: the posterior made once for the samples of a program, z
written and never read, the noise in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._args import compute_dtype
from .._options import Posterior
from ._grid import Work, launch, load, share, tile_at
from ._math import half_difference_of_squares, whitened, whitening_root
from ._philox import tile_noise
from ._posterior import densities, numbers, settings
from ._sums import total
from .monte_carlo_kl import backward_shares, forward_shares, merged, room


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
    given = (mu, scale, prior_mu, prior_scale)
    dtype = compute_dtype(*given)
    samples, work, programs = _work(mu, (*given, noise), dtype, state, options)
    z = torch.empty((samples, *mu.shape), dtype=mu.dtype, device=mu.device)
    kl = torch.empty(z.shape[:2], dtype=dtype, device=mu.device)
    of_sample = work.segments * work.col_tiles
    parts = kl if of_sample == 1 else kl.new_empty((kl.numel(), of_sample))
    shares = forward_shares(samples, programs)
    launch(
        _forward,
        programs * shares,
        mu.device,
        z,
        parts,
        *work.operands[:5],
        state,
        options.offset,
        *_sizes(work, samples, shares),
        options.temperature,
        *numbers(options.transform),
        **_meta(work, options, state, given),
    )
    if of_sample > 1:
        total(parts, kl.view(-1), 1.0)
    return (z, kl) if options.num_samples else (z[0], kl[0])


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
    need: Sequence[bool],
) -> list[Tensor]:
    """The gradients in mu, scale, prior_mu and prior_scale that are needed."""
    given = (mu, scale, prior_mu, prior_scale)
    dtype = compute_dtype(*given)
    samples, work, programs = _work(mu, (*given, noise, grad_z), dtype, state, options)
    strides: tuple[int, ...] = (0, 0)
    if grad_kl is not None:
        strides = grad_kl.stride() if options.num_samples else (0, *grad_kl.stride())
    shares = backward_shares(samples, programs)
    sums = [
        room(t, mu, dtype, shares) if t is not None and n else None
        for t, n in zip(given, need, strict=True)
    ]
    launch(
        _backward,
        programs * shares,
        mu.device,
        *sums,
        grad_kl,
        *work.operands[:6],
        state,
        options.offset,
        *strides,
        *_sizes(work, samples, shares),
        options.temperature,
        *numbers(options.transform),
        STOP=stop_posterior,
        **_meta(work, options, state, given),
    )
    return [
        merged(t, mu, parts)
        for t, parts in zip(given, sums, strict=True)
        if t is not None and parts is not None
    ]


def _work(
    mu: Tensor,
    tensors: Sequence[Tensor | None],
    dtype: torch.dtype,
    state: Tensor | None,
    options: Posterior,
) -> tuple[int, Work, int]:
    """How many samples there are, the grid of one, and its tiles."""
    samples = max(options.num_samples, 1)
    shape = (samples, *mu.shape)
    rowwise = state is not None and state.dim() > 1
    work = share(shape, 2, tensors, dtype, "sample", copies=samples, rowwise=rowwise)
    return samples, work, work.row_tiles * work.col_tiles


def _sizes(work: Work, samples: int, shares: int) -> tuple[int, ...]:
    units = work.cols // work.meta["VEC"]
    return (work.rows, units, work.segments, work.col_tiles, samples, shares)


def _meta(
    work: Work, options: Posterior, state: Tensor | None, given: Sequence[Tensor | None]
) -> dict[str, Any]:
    return {
        "PRIOR": given[2] is not None or given[3] is not None,
        "PER_SAMPLE": state is not None and state.dim() > 1,
        "ALIGNED": work.cols % 4 == 0,
        **settings(options.transform),
        **work.meta,
    }


@triton.jit(do_not_specialize=["offset"])
def _forward(
    z, parts, mu, scale, prior_mu, prior_scale, noise, state, offset: tl.int64,
    rows, cols, segments, col_tiles, samples, shares,
    temperature: tl.float64, min_std: tl.float64, low: tl.float64, high: tl.float64,
    PRIOR: tl.constexpr, PER_SAMPLE: tl.constexpr, ALIGNED: tl.constexpr, PARAM: tl.constexpr,
    CLAMP: tl.constexpr, GROUP: tl.constexpr, VEC: tl.constexpr, WIDE: tl.constexpr,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    # z: [samples * rows, cols]; parts: [samples * rows, col_tiles]; the parameters are views over
    # [rows, cols], noise over [samples * rows, cols].
    tile = tl.program_id(0) // shares
    first_sample = tl.program_id(0) % shares
    cols = cols * VEC
    row, first, columns, live_row, live = tile_at(tile, col_tiles, rows, cols, ROWS, COLS, WIDE)
    m, logvar, std, _, p, prior_logvar, _ = densities(
        mu, scale, prior_mu, prior_scale, row, columns, live, live_row, min_std, low, high,
        PRIOR, PARAM, CLAMP, GROUP, VEC, DTYPE, ROWS, COLS,
    )  # fmt: skip
    temperature = tl.full((), temperature, DTYPE)
    spread = temperature * std
    prior_root = whitening_root(prior_logvar)
    constant = logvar - prior_logvar if PRIOR else logvar
    out = (tile // col_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    for k in range(first_sample, samples, shares):
        at = row + (tl.full((), k, tl.int64) * rows if WIDE else k * rows)
        if noise is not None:
            eps = load(noise, at, columns, live, live_row, VEC, GROUP).to(DTYPE)
        else:
            eps = tile_noise(
                state, offset, row, first, live_row, cols, segments, k,
                0, True, PER_SAMPLE, ALIGNED, GROUP, ROWS, COLS, DTYPE,
            )  # fmt: skip
        sample = m + spread * eps
        tl.store(z + (at * cols + columns), sample, mask=live)
        far = whitened(sample - p, prior_root) if PRIOR else sample
        value = half_difference_of_squares(far, temperature * eps) - 0.5 * constant
        value = tl.sum(tl.where(live, value, 0.0), 1)
        place = (out + tl.full((), k, tl.int64) * rows) * col_tiles + tile % col_tiles
        tl.store(parts + place, value, mask=out < rows)


@triton.jit(do_not_specialize=["offset"])
def _backward(
    grad_mu, grad_scale, grad_prior_mu, grad_prior_scale, grad_kl,
    mu, scale, prior_mu, prior_scale, noise, grad_z, state, offset: tl.int64,
    sample_stride, row_stride, rows, cols, segments, col_tiles, samples, shares,
    temperature: tl.float64, min_std: tl.float64, low: tl.float64, high: tl.float64,
    STOP: tl.constexpr, PRIOR: tl.constexpr, PER_SAMPLE: tl.constexpr, ALIGNED: tl.constexpr,
    PARAM: tl.constexpr, CLAMP: tl.constexpr, GROUP: tl.constexpr, VEC: tl.constexpr,
    WIDE: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    # grad_mu to grad_prior_scale: [shares, rows, cols]; grad_kl: [samples, rows / segments];
    # grad_z: a view over [samples * rows, cols]; the rest as in `_forward`.
    tile = tl.program_id(0) // shares
    own = tl.program_id(0) % shares
    cols = cols * VEC
    row, first, columns, live_row, live = tile_at(tile, col_tiles, rows, cols, ROWS, COLS, WIDE)
    m, logvar, std, slope, p, prior_logvar, prior_slope = densities(
        mu, scale, prior_mu, prior_scale, row, columns, live, live_row, min_std, low, high,
        PRIOR, PARAM, CLAMP, GROUP, VEC, DTYPE, ROWS, COLS,
    )  # fmt: skip
    temperature = tl.full((), temperature, DTYPE)
    spread = temperature * std
    prior_root = whitening_root(prior_logvar)
    to_mu = tl.zeros((ROWS, COLS), DTYPE)
    to_scale = tl.zeros((ROWS, COLS), DTYPE)
    to_prior_mu = tl.zeros((ROWS, COLS), DTYPE)
    to_prior_scale = tl.zeros((ROWS, COLS), DTYPE)
    for k in range(own, samples, shares):
        at = row + (tl.full((), k, tl.int64) * rows if WIDE else k * rows)
        if noise is not None:
            eps = load(noise, at, columns, live, live_row, VEC, GROUP).to(DTYPE)
        else:
            eps = tile_noise(
                state, offset, row, first, live_row, cols, segments, k,
                0, True, PER_SAMPLE, ALIGNED, GROUP, ROWS, COLS, DTYPE,
            )  # fmt: skip
        to_z = tl.zeros((ROWS, COLS), DTYPE)
        if grad_z is not None:
            to_z = load(grad_z, at, columns, live, live_row, VEC, GROUP).to(DTYPE)
        if grad_kl is not None:
            place = grad_kl + tl.full((), k, tl.int64) * sample_stride
            g = tl.load(place + row // segments * row_stride, mask=live_row, other=0).to(DTYPE)
            sample = m + spread * eps
            far = whitened(sample - p, prior_root) if PRIOR else sample
            prior_score = whitened(far, prior_root) if PRIOR else far
            # sigma times the gradient in z may be 0 times infinity, so z - mu is a factor at once.
            grown = whitened(spread * eps, prior_root) * far if PRIOR else spread * eps * far
            if PRIOR:
                to_prior_mu -= g * prior_score
                to_prior_scale += g * (1.0 - far * far)
            if STOP:
                near = temperature * eps
                prior_score -= whitened(near, whitening_root(logvar))
                grown -= near * near
            else:
                grown -= 1.0
            to_mu += g * prior_score
            to_scale += g * grown
        to_mu += to_z
        to_scale += spread * eps * to_z
    out = (row + own * rows) * cols + columns
    if grad_mu is not None:
        tl.store(grad_mu + out, to_mu, mask=live)
    if grad_scale is not None:
        tl.store(grad_scale + out, 0.5 * slope * to_scale, mask=live)
    if grad_prior_mu is not None:
        tl.store(grad_prior_mu + out, to_prior_mu, mask=live)
    if grad_prior_scale is not None:
        tl.store(grad_prior_scale + out, 0.5 * prior_slope * to_prior_scale, mask=live)
