"""Philox4x32-10 (Salmon et al. 2011) inside kernels: one counter makes four neighbours' noise."""

from __future__ import annotations

import triton
import triton.language as tl

from ._hardware import sqrt
from ._math import log_normal, sincos_turns


@triton.jit
def tile_noise(
    state,
    offset,
    row,
    col,
    live_row,
    cols,
    segments,
    sample,
    PURPOSE: tl.constexpr,
    NORMAL: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Noise `[ROWS, COLS]` of the rows `row` (a scalar where ROWS is 1, else `[ROWS, 1]`).

    `col` is the tile's first column, a multiple of 16. ALIGNED: `cols` is a multiple of 4. GROUP:
    4, or 8 where 16-bit operands make a thread hold eight neighbours.
    """
    if PER_SAMPLE:
        # state: [B, 2]
        entry = state + 2 * (row // segments)
        seed = tl.load(entry, mask=live_row, other=0)
        start = tl.load(entry + 1, mask=live_row, other=0) + offset
        begin = start + (row % segments).to(tl.int64) * cols
    else:
        # state: [2]
        seed = tl.load(state)
        start = tl.load(state + 1) + offset
        begin = start + row.to(tl.int64) * cols
    group = col + GROUP * tl.arange(0, COLS // GROUP)[None, :]
    block = (begin >> 2) + (group >> 2)
    n0, n1, n2, n3 = _four(seed, block, sample, PURPOSE, NORMAL, DTYPE)
    if GROUP == 8:
        n4, n5, n6, n7 = _four(seed, block + 1, sample, PURPOSE, NORMAL, DTYPE)
    if ROWS == 1 or (ALIGNED and not PER_SAMPLE):
        # One number for the whole tile, and nearly always 0: one more counter costs nothing.
        shift = (begin if ROWS == 1 else start) & 3
        if shift != 0:
            m0, m1, m2, m3 = _four(seed, block + GROUP // 4, sample, PURPOSE, NORMAL, DTYPE)
            if GROUP == 8:
                n0, n1, n2, n3 = _shifted(shift, n0, n1, n2, n3, n4, n5, n6, n7)
                n4, n5, n6, n7 = _shifted(shift, n4, n5, n6, n7, m0, m1, m2, m3)
            else:
                n0, n1, n2, n3 = _shifted(shift, n0, n1, n2, n3, m0, m1, m2, m3)
    else:
        shift = begin & 3
        m0, m1, m2, m3 = _four(seed, block + GROUP // 4, sample, PURPOSE, NORMAL, DTYPE)
        if GROUP == 8:
            n0, n1, n2, n3 = _shifted(shift, n0, n1, n2, n3, n4, n5, n6, n7)
            n4, n5, n6, n7 = _shifted(shift, n4, n5, n6, n7, m0, m1, m2, m3)
        else:
            n0, n1, n2, n3 = _shifted(shift, n0, n1, n2, n3, m0, m1, m2, m3)
    # Joined, a thread's values are neighbours, as many as a 16-byte load brings: nothing has to
    # pass through shared memory.
    if GROUP == 8:
        n0, n1 = tl.join(n0, n4), tl.join(n1, n5)
        n2, n3 = tl.join(n2, n6), tl.join(n3, n7)
    joined = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    return tl.reshape(joined, (ROWS, COLS))


@triton.jit
def philox(seed, block, sample, purpose):
    """Four uint32 words for counter (block, sample, purpose) under the key `seed`, all int64."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = tl.full((), sample, tl.uint32)
    c3 = tl.full((), purpose, tl.uint32)
    for _ in tl.static_range(10):
        first = c0.to(tl.uint64) * 0xD2511F53
        second = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (second >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = second.to(tl.uint32)
        c2 = (first >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = first.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _four(seed, block, sample, PURPOSE: tl.constexpr, NORMAL: tl.constexpr, DTYPE: tl.constexpr):
    w0, w1, w2, w3 = philox(seed, block, sample, PURPOSE)
    u0, u1, u2, u3 = _unit(w0, DTYPE), _unit(w1, DTYPE), _unit(w2, DTYPE), _unit(w3, DTYPE)
    if NORMAL:
        u0, u1 = _box_muller(u0, u1)
        u2, u3 = _box_muller(u2, u3)
    return u0, u1, u2, u3


@triton.jit
def _unit(word, DTYPE: tl.constexpr):
    """(word + 1) 2^-32, in (0, 1], from all 32 bits."""
    return word.to(DTYPE) * 2.3283064365386963e-10 + 2.3283064365386963e-10


@triton.jit
def _box_muller(u, v):
    radius = sqrt(-2.0 * log_normal(u))
    sin, cos = sincos_turns(v)
    return radius * cos, radius * sin


@triton.jit
def _shifted(shift, n0, n1, n2, n3, m0, m1, m2, m3):
    """Four values from the `shift`-th of eight on."""
    return (
        tl.where(shift == 0, n0, tl.where(shift == 1, n1, tl.where(shift == 2, n2, n3))),
        tl.where(shift == 0, n1, tl.where(shift == 1, n2, tl.where(shift == 2, n3, m0))),
        tl.where(shift == 0, n2, tl.where(shift == 1, n3, tl.where(shift == 2, m0, m1))),
        tl.where(shift == 0, n3, tl.where(shift == 1, m0, tl.where(shift == 2, m1, m2))),
    )
