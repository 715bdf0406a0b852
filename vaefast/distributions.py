"""Diagonal Gaussians with the interfaces of diffusers and of torch.distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.distributions import Normal
from torch.distributions.kl import register_kl

from ._diagonal_gaussian import DiagonalGaussian
from .ops.gaussian_kl import gaussian_kl
from .ops.rsample import rsample

__all__ = ["DiagonalGaussian", "FusedNormal"]


class FusedNormal(Normal):
    """`torch.distributions.Normal` that samples, and takes its KL to a Normal, in one kernel.

    `rsample`, `sample` and `torch.distributions.kl_divergence(FusedNormal, Normal)` are fused;
    all else is Normal's. A KL of half-precision parameters is float32.

    Example:
        >>> q = FusedNormal(torch.zeros(3, 2), torch.ones(3, 2))
        >>> q.rsample((5,)).shape
        torch.Size([5, 3, 2])
        >>> torch.distributions.kl_divergence(q, Normal(1.0, 1.0)).sum()
        tensor(3.)
    """

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """loc + scale * eps, `[*sample_shape, *batch_shape]`."""
        shape = self._extended_shape(Size(sample_shape))
        copies, width = math.prod(sample_shape), math.prod(self.batch_shape)
        loc = self.loc.to(torch.promote_types(self.loc.dtype, self.scale.dtype))
        # Many samples of few elements are one wide draw: each sample begins its own counters.
        if len(sample_shape) == 0 or copies >= max(width, 1):
            wide = (_at_least_1d(t, shape) for t in (loc, self.scale))
            return rsample(*wide, param="std").view(shape)
        if not copies:
            return (loc + self.scale).expand(0, *loc.shape).reshape(shape)
        return rsample(loc, self.scale, param="std", num_samples=copies).view(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """As `rsample`, without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


def _kl_fused_normal(p: FusedNormal, q: Normal) -> Tensor:
    """KL(p || q) per element of the common batch shape."""
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    return gaussian_kl(
        _at_least_1d(p.loc, shape),
        _at_least_1d(p.scale, shape),
        q.loc,
        q.scale,
        param="std",
        reduction="none",
    ).view(shape)


register_kl(FusedNormal, Normal)(_kl_fused_normal)


def _at_least_1d(tensor: Tensor, shape: Size) -> Tensor:
    """`tensor` expanded to `shape`; a scalar as `[1]`, for the operators want a batch."""
    return tensor.expand(shape if shape else (1,))
