"""Pairwise operators as KeOps users write them, where pykeops is installed: it reduces a symbolic
matrix of pairs without keeping it, forward and backward."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping

from torch import Tensor

from .case import Formula


def mmd(scales: tuple[float, ...]) -> Formula:
    def formula(x: Tensor, y: Tensor) -> tuple[Tensor]:
        n = len(x)
        xx, yy, xy = (_kernel_sum(a, b, scales) for a, b in ((x, x), (y, y), (x, y)))
        # A point beside itself, which the unbiased estimate leaves out, counts 1 at each scale.
        itself = 2 * n * len(scales)
        return ((xx + yy - itself) / (n * (n - 1)) - 2 * xy / n**2,)

    return formula


def _kernel_sum(a: Tensor, b: Tensor, scales: tuple[float, ...]) -> Tensor:
    from pykeops.torch import LazyTensor

    squared = ((LazyTensor(a[:, None]) - LazyTensor(b[None])) ** 2).sum(-1)
    constants = [2 * a.shape[1] * scale for scale in scales]
    total = sum(c / (squared + c) for c in constants)
    return total.sum(1).sum()


def mixture_log_prob(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor) -> tuple[Tensor]:
    from pykeops.torch import LazyTensor

    precision = (-logvar).exp()
    squares = ((LazyTensor(z[:, None]) - LazyTensor(mu[None])) ** 2) * LazyTensor(precision[None])
    constant = log_weights - 0.5 * (logvar + math.log(2 * math.pi)).sum(1)
    pairs = LazyTensor(constant.contiguous()[None, :, None]) - 0.5 * squares.sum(-1)
    return (pairs.logsumexp(1).squeeze(-1),)


def beside(formulas: Mapping[str, Formula], keops: Formula) -> dict[str, Formula]:
    """Those formulas, and KeOps' where it is installed."""
    installed = importlib.util.find_spec("pykeops") is not None
    return {**formulas, **({"keops": keops} if installed else {})}
