"""Philox4x32-10 and Box-Muller in int64 and floating-point tensors (Salmon et al. 2011)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def noise(
    state: Tensor, shape: Sequence[int], dtype: torch.dtype, kind: str, purpose: int, offset: int
) -> Tensor:
    """`kind` ("normal" or "uniform") of `shape` from `state`, `[2]` or `[B, 2]`."""
    return sample_noise(state, shape, dtype, kind, purpose, offset, sample=0)


def sample_noise(
    state: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    kind: str,
    purpose: int,
    offset: int,
    sample: int,
) -> Tensor:
    """As `noise`, for the `sample`-th of several samples."""
    count = math.prod(shape)
    rows = 1 if state.dim() == 1 else shape[0]
    per_row = count // rows if rows else 0
    seed, start = state.reshape(-1, 2)[:, :1], state.reshape(-1, 2)[:, 1:] + offset
    # One counter gives four values; the first and the last may be used in part.
    shift = start & 3
    counters = (start >> 2) + torch.arange(per_row // 4 + 2, device=state.device)
    words = _philox(seed, counters, sample, purpose)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    uniforms = [_unit(word, compute) for word in words]
    if kind == "normal":
        uniforms = [*_box_muller(*uniforms[:2]), *_box_muller(*uniforms[2:])]
    values = torch.stack(uniforms, dim=-1).flatten(1)
    place = shift + torch.arange(per_row, device=state.device)
    return values.gather(1, place).reshape(tuple(shape)).to(dtype)


def _philox(seed: Tensor, counters: Tensor, sample: int, purpose: int) -> tuple[Tensor, ...]:
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    c0, c1 = counters & _LOW, (counters >> 32) & _LOW
    c2, c3 = torch.full_like(c0, sample), torch.full_like(c0, purpose)
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64; the masked shift is then the exact high word.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & _LOW) ^ c1 ^ k0,
            second & _LOW,
            ((first >> 32) & _LOW) ^ c3 ^ k1,
            first & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _unit(word: Tensor, dtype: torch.dtype) -> Tensor:
    """(word + 1) * 2^-32, in (0, 1], from all 32 bits."""
    return word.to(dtype) * 2.0**-32 + 2.0**-32


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    radius = torch.sqrt(-2 * torch.log(u))
    # A quarter turn at a time: the remainder is exact in float32, sin and cos of it accurate.
    quarter = torch.round(4 * v)
    angle = (4 * v - quarter) * (math.pi / 2)
    sin, cos = torch.sin(angle), torch.cos(angle)
    turn = quarter.to(torch.int64) & 3
    odd = (turn & 1).bool()
    s, c = torch.where(odd, cos, sin), torch.where(odd, sin, cos)
    s = torch.where(turn >= 2, -s, s)
    c = torch.where((turn == 1) | (turn == 2), -c, c)
    return radius * c, radius * s
