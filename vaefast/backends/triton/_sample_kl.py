"""The kernels of `sample_kl`: one read of mu and scale, the noise in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from ._grid import load, tile_at, tile_first, tile_live, tile_row
from ._math import exp, expm1, expm1_minus_x, whitening_root
from ._philox import tile_noise
from ._posterior import posterior_scale


@triton.jit(do_not_specialize=["offset"])
def forward(
    z,
    kl,
    mu,
    scale,
    prior_mu,
    prior_scale,
    mask,
    weight,
    noise,
    state,
    offset: tl.int64,
    rows,
    cols,
    segments,
    row_tiles,
    col_tiles,
    splits,
    samples,
    temperature: tl.float64,
    min_std: tl.float64,
    low: tl.float64,
    high: tl.float64,
    factor: tl.float64,
    REDUCE: tl.constexpr,
    PARAM: tl.constexpr,
    CLAMP: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUP: tl.constexpr,
    VEC: tl.constexpr,
    WIDE: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    # z: [samples, rows, cols]; kl: the elements, or sums as _sums.room gives them; state: [2] or
    # [rows / segments, 2]; the rest are views over [rows, cols], noise over [samples * rows, cols].
    pid = tl.program_id(0)
    cols = cols * VEC
    segment = pid * 0
    if REDUCE == "dim":
        # A program owns a run of columns in one segment, and every splits-th tile of samples.
        own = pid // splits
        segment = own // col_tiles
        begin, end, step = pid % splits, row_tiles, splits
    elif REDUCE == "sample":
        own = pid // splits
        begin, end, step = own * col_tiles + pid % splits, (own + 1) * col_tiles, splits
    else:
        own = pid
        begin, end, step = pid, row_tiles * col_tiles, tl.num_programs(0)
    temperature = tl.full((), temperature, DTYPE)
    min_std = tl.full((), min_std, DTYPE)
    low = tl.full((), low, DTYPE)
    high = tl.full((), high, DTYPE)
    factor = tl.full((), factor, DTYPE)
    acc = tl.zeros((ROWS, COLS), DTYPE)
    for tile in range(begin, end, step):
        if REDUCE == "dim":
            row = tile_row(tile, segments, segment, ROWS, WIDE)
            first = tile_first(own % col_tiles, COLS, WIDE)
            columns = first + tl.arange(0, COLS)[None, :]
            live_row = row < rows
            live = tile_live(columns, live_row, cols, ROWS)
        else:
            row, first, columns, live_row, live = tile_at(
                tile, col_tiles, rows, cols, ROWS, COLS, WIDE
            )
        m = load(mu, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        s = load(scale, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        logvar, std, _, _ = posterior_scale(s, low, high, min_std, PARAM, CLAMP)
        if z is not None:
            spread = temperature * std
            place = row
            for k in range(samples):
                if noise is not None:
                    eps = load(noise, place, columns, live, live_row, VEC, GROUP).to(DTYPE)
                else:
                    eps = tile_noise(
                        state, offset, row, first, live_row, cols, segments, k,
                        0, True, PER_SAMPLE, ALIGNED, GROUP, ROWS, COLS, DTYPE,
                    )  # fmt: skip
                tl.store(z + (place * cols + columns), m + spread * eps, mask=live)
                place += rows
        if REDUCE != "":
            distance = m
            # Where there is no sample, sigma is not needed.
            variance = exp(logvar) if z is None and PARAM == "logvar" else std * std
            if prior_mu is not None:
                distance = m - load(prior_mu, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
            if prior_scale is not None:
                p = load(prior_scale, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
                prior_logvar, _, _, _ = posterior_scale(p, low, high, min_std, PARAM, 0)
                logvar = logvar - prior_logvar
                variance = exp(logvar)
                root = whitening_root(prior_logvar)
                distance = distance * root * root
            value = 0.5 * (distance * distance + expm1_minus_x(logvar, variance))
            if weight is not None:
                value = value * load(weight, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
            if mask is not None:
                value = tl.where(load(mask, row, columns, live, live_row, VEC, GROUP), value, 0.0)
            if REDUCE == "elem":
                tl.store(kl + (row * cols + columns), value * factor, mask=live)
            else:
                acc += tl.where(live, value, 0.0)
    if REDUCE == "dim":
        columns = tile_first(own % col_tiles, COLS, WIDE) + tl.arange(0, COLS)
        place = (pid % splits * segments + segment) * cols + columns
        tl.store(kl + place, tl.sum(acc, 0) * factor, mask=columns < cols)
    elif REDUCE == "sample":
        place = own * ROWS + tl.arange(0, ROWS)
        tl.store(kl + (place * splits + pid % splits), tl.sum(acc, 1) * factor, mask=place < rows)
    elif REDUCE == "sum":
        tl.store(kl + pid, tl.sum(acc) * factor)


@triton.jit(do_not_specialize=["offset"])
def backward(
    grad_mu,
    grad_scale,
    grad_prior_mu,
    grad_prior_scale,
    grad_z,
    grad_kl,
    mu,
    scale,
    prior_mu,
    prior_scale,
    mask,
    weight,
    noise,
    state,
    offset: tl.int64,
    rows,
    cols,
    segments,
    row_tiles,
    col_tiles,
    splits,
    samples,
    temperature: tl.float64,
    min_std: tl.float64,
    low: tl.float64,
    high: tl.float64,
    factor: tl.float64,
    PARAM: tl.constexpr,
    CLAMP: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUP: tl.constexpr,
    VEC: tl.constexpr,
    WIDE: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    # grad_mu to grad_prior_scale: [rows, cols]; grad_z: a view over [samples * rows, cols], grad_kl
    # over [rows, cols]; the rest as in `forward`.
    tile = tl.program_id(0)
    cols = cols * VEC
    row, first, columns, live_row, live = tile_at(tile, col_tiles, rows, cols, ROWS, COLS, WIDE)
    out = row * cols + columns
    min_std = tl.full((), min_std, DTYPE)
    low = tl.full((), low, DTYPE)
    high = tl.full((), high, DTYPE)
    s = load(scale, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
    logvar, _, logvar_slope, std_slope = posterior_scale(s, low, high, min_std, PARAM, CLAMP)
    to_mu = tl.zeros((ROWS, COLS), DTYPE)
    to_scale = tl.zeros((ROWS, COLS), DTYPE)
    if grad_kl is not None:
        g = load(grad_kl, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        g = g * tl.full((), factor, DTYPE)
        if weight is not None:
            g = g * load(weight, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        shown = live
        if mask is not None:
            shown = load(mask, row, columns, live, live_row, VEC, GROUP)
        mu_slope = load(mu, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        if prior_mu is not None:
            mu_slope = mu_slope - load(prior_mu, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        away = mu_slope
        prior_slope = 1.0
        if prior_scale is not None:
            p = load(prior_scale, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
            prior_logvar, _, prior_slope, _ = posterior_scale(p, low, high, min_std, PARAM, 0)
            logvar = logvar - prior_logvar
            root = whitening_root(prior_logvar)
            away = mu_slope * root * root
            mu_slope = away * root * root
        grown = expm1(logvar)
        to_mu += tl.where(shown, g * mu_slope, 0.0)
        to_scale += tl.where(shown, 0.5 * g * grown * logvar_slope, 0.0)
        if grad_prior_mu is not None:
            tl.store(grad_prior_mu + out, tl.where(shown, -g * mu_slope, 0.0), mask=live)
        if grad_prior_scale is not None:
            to_prior = -0.5 * g * (away * away + grown) * prior_slope
            tl.store(grad_prior_scale + out, tl.where(shown, to_prior, 0.0), mask=live)
    if grad_z is not None:
        slope = tl.full((), temperature, DTYPE) * std_slope
        place = row
        for k in range(samples):
            upstream = load(grad_z, place, columns, live, live_row, VEC, GROUP).to(DTYPE)
            to_mu += upstream
            if grad_scale is not None:
                if noise is not None:
                    eps = load(noise, place, columns, live, live_row, VEC, GROUP).to(DTYPE)
                else:
                    eps = tile_noise(
                        state, offset, row, first, live_row, cols, segments, k,
                        0, True, PER_SAMPLE, ALIGNED, GROUP, ROWS, COLS, DTYPE,
                    )  # fmt: skip
                to_scale += upstream * eps * slope
            place += rows
    if grad_mu is not None:
        tl.store(grad_mu + out, to_mu, mask=live)
    if grad_scale is not None:
        tl.store(grad_scale + out, to_scale, mask=live)
