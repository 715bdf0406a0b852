"""Small calls of `elbo_loss`."""

from __future__ import annotations

import torch

import vaefast as vf

from ..small_call import F64, Operator, randn


def calls() -> list[Operator]:
    return [
        Operator(
            "elbo_loss",
            "",
            lambda: (randn((9, 7), (9, 7), (9, 41)), [torch.rand(9, 41, dtype=F64)]),
            lambda m, v, p, x: (vf.elbo_loss(p, x, m, v, likelihood="bernoulli", beta=0.5).loss,),
        ),
    ]
