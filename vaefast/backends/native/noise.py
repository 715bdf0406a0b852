"""`noise` by the compiled core."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _C
from ._pack import fresh, result, state_of
from ._place import place


def noise(
    state: Tensor, shape: Sequence[int], dtype: torch.dtype, kind: str, purpose: int, offset: int
) -> Tensor:
    """`kind` ("normal" or "uniform") of `shape` from `state`, `[2]` or `[B, 2]`."""
    out = fresh(shape, dtype, state.device)
    rows = shape[0] if state.dim() > 1 else 1
    cols = math.prod(shape) // rows if rows else 0
    grid = (rows, cols, 1)
    _C.noise(
        grid,
        state_of(state, offset),
        kind == "normal",
        purpose,
        result(out),
        torch.get_num_threads() if out.is_cpu else place(out, grid),
    )
    return out
