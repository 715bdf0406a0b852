"""Small calls of `log_weights`."""

from __future__ import annotations

import torch

import vaefast as vf

from ..small_call import F64, Operator, randn


def calls() -> list[Operator]:
    samples, grid = (7, 33, 50), (33, 50)
    x = lambda: torch.rand(33, 41, dtype=F64)  # noqa: E731
    weights = lambda p, z, m, v, x: vf.log_weights(p, x, z, m, v, likelihood="bernoulli")  # noqa: E731
    given = lambda: (randn((7, 33, 41), samples, grid, grid), [x()])  # noqa: E731
    return [
        Operator("log_weights", "", given, lambda *t: (weights(*t),)),
    ]
