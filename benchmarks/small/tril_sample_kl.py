"""Small calls of `tril_sample_kl`."""

from __future__ import annotations

import torch
from torch import Tensor

import vaefast as vf

from ..small_call import F64, Operator, randn


def calls() -> list[Operator]:
    return [
        Operator(
            "tril_sample_kl",
            "",
            lambda: ([*randn((9, 7)), _triangle(7, 9)], []),
            lambda m, tril: vf.tril_sample_kl(m, tril, seed=3),
        ),
    ]


def _triangle(dims: int, batch: int) -> Tensor:
    return torch.randn(batch, dims, dims, dtype=F64).tril(-1) + torch.eye(dims, dtype=F64)
