"""The maximum mean discrepancy of two samples as differentiable PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .._options import MmdOptions


def mmd(x: Tensor, y: Tensor, options: MmdOptions) -> Tensor:
    """The squared discrepancy of x `[N, D]` and y `[M, D]`."""
    n, m = x.shape[0], y.shape[0]
    within_x, within_y = kernel(x, x, options), kernel(y, y, options)
    if options.unbiased:
        within = (within_x.sum() - within_x.diagonal().sum()) / (n * (n - 1))
        within = within + (within_y.sum() - within_y.diagonal().sum()) / (m * (m - 1))
    else:
        within = within_x.mean() + within_y.mean()
    return within - 2 * kernel(x, y, options).mean()


def kernel(x: Tensor, y: Tensor, options: MmdOptions) -> Tensor:
    """The sum over the scales of k(x_i, y_j) as `[N, M]`."""
    # Not torch.cdist, whose second derivative and whose gradient at distance 0 are missing.
    squared = ((x[:, None] - y) ** 2).sum(-1)
    total = torch.zeros_like(squared)
    for scale in options.scales:
        total = total + (torch.exp(-squared / scale) if options.rbf else scale / (scale + squared))
    return total
