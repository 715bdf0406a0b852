"""`monte_carlo_kl` by Triton: the posterior made once for the samples of a program, z read once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._args import compute_dtype
from .._options import Transform
from ..layout import fitted
from ._grid import Work, launch, load, share, tile_at
from ._math import half_difference_of_squares, whitened, whitening_root
from ._posterior import densities, numbers, settings
from ._sums import total

# Programs that the samples are shared out between where there are few posteriors; backward fewer,
# as what each adds up takes more launches to merge.
_PROGRAMS, _BACKWARD_PROGRAMS = 512, 128
_LOG_2PI = tl.constexpr(1.8378770664093453)


def monte_carlo_kl(
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    transform: Transform,
    prior: bool,
) -> Tensor:
    """`[K, B]` for z `[K, B, *latent]`; log q(z|x) alone where `prior` is False."""
    dtype = compute_dtype(z, mu, scale, prior_mu, prior_scale)
    work, programs = _work(z, (mu, scale, prior_mu, prior_scale, z), dtype)
    value = torch.empty(z.shape[:2], dtype=dtype, device=z.device)
    of_sample = work.segments * work.col_tiles
    parts = value if of_sample == 1 else value.new_empty((value.numel(), of_sample))
    shares = forward_shares(z.shape[0], programs)
    launch(
        _forward,
        programs * shares,
        z.device,
        parts,
        *work.operands[:5],
        *_sizes(work, z, shares),
        *numbers(transform),
        PRIOR=prior,
        **settings(transform),
        **work.meta,
    )
    if of_sample > 1:
        total(parts, value.view(-1), 1.0)
    return value


def monte_carlo_kl_backward(
    upstream: Tensor,
    z: Tensor,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    transform: Transform,
    prior: bool,
    need: Sequence[bool],
) -> list[Tensor]:
    """The gradients in z, mu, scale, prior_mu and prior_scale that are needed."""
    parameters = (mu, scale, prior_mu, prior_scale)
    dtype = compute_dtype(z, *parameters)
    work, programs = _work(z, (*parameters, z), dtype)
    shares = backward_shares(z.shape[0], programs)
    grad_z = torch.empty_like(z, memory_format=torch.contiguous_format) if need[0] else None
    sums = [
        room(t, mu, dtype, shares) if t is not None and n else None
        for t, n in zip(parameters, need[1:], strict=True)
    ]
    launch(
        _backward,
        programs * shares,
        z.device,
        grad_z,
        *sums,
        upstream,
        *work.operands[:5],
        *upstream.stride(),
        *_sizes(work, z, shares),
        *numbers(transform),
        PRIOR=prior,
        **settings(transform),
        **work.meta,
    )
    grads = [] if grad_z is None else [grad_z]
    for t, parts in zip(parameters, sums, strict=True):
        if t is not None and parts is not None:
            grads.append(merged(t, mu, parts))
    return grads


def _work(z: Tensor, tensors: Sequence[Tensor | None], dtype: torch.dtype) -> tuple[Work, int]:
    """The grid of one sample, and its tiles."""
    work = share(z.shape, 2, tensors, dtype, "sample", copies=z.shape[0])
    return work, work.row_tiles * work.col_tiles


def forward_shares(samples: int, programs: int) -> int:
    """How many programs share the samples of a tile."""
    return min(samples, -(-_PROGRAMS // programs))


def backward_shares(samples: int, programs: int) -> int:
    """The same where each adds up: the parts take at most a square root of z's room."""
    return min(math.isqrt(samples), -(-_BACKWARD_PROGRAMS // programs))


def room(parameter: Tensor, mu: Tensor, dtype: torch.dtype, shares: int) -> Tensor:
    """Where a gradient goes; one that is summed afterwards is not in half precision."""
    whole = shares == 1 and parameter.shape == mu.shape
    return mu.new_empty((shares, *mu.shape), dtype=parameter.dtype if whole else dtype)


def merged(parameter: Tensor, mu: Tensor, parts: Tensor) -> Tensor:
    """A parameter's gradient from what `room` gave."""
    grad = parts[0]
    if len(parts) > 1:
        same = parameter.shape == mu.shape
        grad = mu.new_empty(mu.shape, dtype=parameter.dtype if same else parts.dtype)
        total(parts.view(len(parts), -1).t(), grad.view(-1), 1.0)
    return fitted([grad], [parameter])[0]


def _sizes(work: Work, z: Tensor, shares: int) -> tuple[int, ...]:
    units = work.cols // work.meta["VEC"]
    return (work.rows, units, work.segments, work.col_tiles, z.shape[0], shares)


@triton.jit
def _forward(
    parts, mu, scale, prior_mu, prior_scale, z, rows, cols, segments, col_tiles, samples, shares,
    min_std: tl.float64, low: tl.float64, high: tl.float64,
    PRIOR: tl.constexpr, PARAM: tl.constexpr, CLAMP: tl.constexpr, GROUP: tl.constexpr,
    VEC: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    # parts: [samples * rows, col_tiles]; z: a view over [samples * rows, cols], the parameters
    # over [rows, cols].
    tile = tl.program_id(0) // shares
    first_sample = tl.program_id(0) % shares
    cols = cols * VEC
    row, _, columns, live_row, live = tile_at(tile, col_tiles, rows, cols, ROWS, COLS, WIDE)
    m, logvar, _, _, p, prior_logvar, _ = densities(
        mu, scale, prior_mu, prior_scale, row, columns, live, live_row, min_std, low, high,
        PRIOR, PARAM, CLAMP, GROUP, VEC, DTYPE, ROWS, COLS,
    )  # fmt: skip
    root = whitening_root(logvar)
    prior_root = whitening_root(prior_logvar)
    constant = logvar - prior_logvar if PRIOR else logvar + _LOG_2PI
    out = (tile // col_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    for k in range(first_sample, samples, shares):
        at = row + (tl.full((), k, tl.int64) * rows if WIDE else k * rows)
        sample = load(z, at, columns, live, live_row, VEC, GROUP).to(DTYPE)
        near = whitened(sample - m, root)
        far = whitened(sample - p, prior_root) if PRIOR else 0.0
        value = half_difference_of_squares(far, near) - 0.5 * constant
        value = tl.sum(tl.where(live, value, 0.0), 1)
        place = (out + tl.full((), k, tl.int64) * rows) * col_tiles + tile % col_tiles
        tl.store(parts + place, value, mask=out < rows)


@triton.jit
def _backward(
    grad_z, grad_mu, grad_scale, grad_prior_mu, grad_prior_scale, upstream,
    mu, scale, prior_mu, prior_scale, z, sample_stride, row_stride,
    rows, cols, segments, col_tiles, samples, shares,
    min_std: tl.float64, low: tl.float64, high: tl.float64,
    PRIOR: tl.constexpr, PARAM: tl.constexpr, CLAMP: tl.constexpr, GROUP: tl.constexpr,
    VEC: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    # grad_z: [samples * rows, cols]; grad_mu to grad_prior_scale: [shares, rows, cols]; upstream:
    # [samples, rows / segments]; the rest as in `_forward`.
    tile = tl.program_id(0) // shares
    own = tl.program_id(0) % shares
    cols = cols * VEC
    row, _, columns, live_row, live = tile_at(tile, col_tiles, rows, cols, ROWS, COLS, WIDE)
    m, logvar, _, slope, p, prior_logvar, prior_slope = densities(
        mu, scale, prior_mu, prior_scale, row, columns, live, live_row, min_std, low, high,
        PRIOR, PARAM, CLAMP, GROUP, VEC, DTYPE, ROWS, COLS,
    )  # fmt: skip
    root = whitening_root(logvar)
    prior_root = whitening_root(prior_logvar)
    to_mu = tl.zeros((ROWS, COLS), DTYPE)
    to_scale = tl.zeros((ROWS, COLS), DTYPE)
    to_prior_mu = tl.zeros((ROWS, COLS), DTYPE)
    to_prior_scale = tl.zeros((ROWS, COLS), DTYPE)
    for k in range(own, samples, shares):
        at = row + (tl.full((), k, tl.int64) * rows if WIDE else k * rows)
        sample = load(z, at, columns, live, live_row, VEC, GROUP).to(DTYPE)
        place = upstream + tl.full((), k, tl.int64) * sample_stride
        g = tl.load(place + row // segments * row_stride, mask=live_row, other=0).to(DTYPE)
        near = whitened(sample - m, root)
        posterior_score = whitened(near, root)
        to_mu += g * posterior_score
        to_scale += g * (near * near - 1.0)
        score = -posterior_score
        if PRIOR:
            far = whitened(sample - p, prior_root)
            prior_score = whitened(far, prior_root)
            score += prior_score
            if grad_prior_mu is not None:
                to_prior_mu -= g * prior_score
            if grad_prior_scale is not None:
                to_prior_scale += g * (1.0 - far * far)
        if grad_z is not None:
            tl.store(grad_z + (at * cols + columns), g * score, mask=live)
    out = (row + own * rows) * cols + columns
    if grad_mu is not None:
        tl.store(grad_mu + out, to_mu, mask=live)
    if grad_scale is not None:
        tl.store(grad_scale + out, 0.5 * slope * to_scale, mask=live)
    if grad_prior_mu is not None:
        tl.store(grad_prior_mu + out, to_prior_mu, mask=live)
    if grad_prior_scale is not None:
        tl.store(grad_prior_scale + out, 0.5 * prior_slope * to_prior_scale, mask=live)
