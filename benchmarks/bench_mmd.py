"""WAE's maximum mean discrepancy between codes and a sample of the prior."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import vaefast as vf

from . import keops
from .case import Inputs, OpCase, Shape, leaf

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x**2).sum(1, keepdim=True) + (y**2).sum(1) - 2 * x @ y.T


def textbook(x: Tensor, y: Tensor) -> tuple[Tensor]:
    """As WAE's authors have it, with distances by a matrix product."""
    n = x.shape[0]
    xx, yy, xy = (squared_distances(*pair) for pair in ((x, x), (y, y), (x, y)))
    apart = 1 - torch.eye(n, device=x.device)
    total = x.new_zeros(())
    for scale in SCALES:
        c = 2 * x.shape[1] * scale
        within = (c / (c + xx) + c / (c + yy)) * apart
        total = total + within.sum() / (n * (n - 1)) - 2 * (c / (c + xy)).mean()
    return (total,)


def fused(x: Tensor, y: Tensor) -> tuple[Tensor]:
    return (vf.mmd(x, y),)


def inputs(shape: Shape, device: torch.device) -> Inputs:
    x, y = torch.randn(2, *shape, device=device)
    return Inputs((leaf(0.8 * x + 0.2),), (y,), (torch.ones((), device=device),))


def cases() -> list[OpCase]:
    return [
        OpCase(
            "mmd",
            shape,
            inputs,
            keops.beside({"eager": textbook}, keops.mmd(SCALES)),
            fused,
            targets={"eager": 25.0, "compiled": 2.5} if shape == (512, 32) else {},
            alone=shape[0] > 512,
        )
        for shape in ((128, 32), (512, 32), (8192, 32))
    ]


def test_mmd(measure: Callable[[], None]) -> None:
    measure()
