"""Diagonal Gaussians with the interfaces of diffusers and of torch.distributions, and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.distributions import Normal
from torch.distributions.kl import register_kl

from . import _args
from ._diagonal_gaussian import DiagonalGaussian
from .distributions_counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from .ops import _monte_carlo_kl
from .ops._autograd import needs_reference
from .ops._register import direct
from .ops.gaussian_kl import gaussian_kl
from .ops.rsample import rsample, transform_of

__all__ = [
    "DiagonalGaussian",
    "FusedNormal",
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
]


class FusedNormal(Normal):
    """`torch.distributions.Normal` whose sample, density and KL to a Normal are fused.

    `rsample` and `torch.distributions.kl_divergence(FusedNormal, Normal)` are one kernel each,
    `log_prob` has half of Normal's operators; all else is Normal's. `log_prob` and the KL of
    half-precision parameters are float32.

    Example:
        >>> q = FusedNormal(torch.zeros(3, 2), torch.ones(3, 2))
        >>> q.rsample((5,)).shape
        torch.Size([5, 3, 2])
        >>> torch.distributions.kl_divergence(q, Normal(1.0, 1.0)).sum()
        tensor(3.)
    """

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """loc + scale * eps, `[*sample_shape, *batch_shape]`."""
        loc, scale = self.loc, self.scale
        if len(sample_shape) == 0 and loc.dim() and loc.dtype == scale.dtype:
            return rsample(loc, scale, param="std")
        shape = self._extended_shape(Size(sample_shape))
        copies, width = math.prod(sample_shape), math.prod(self.batch_shape)
        loc = loc.to(torch.promote_types(loc.dtype, scale.dtype))
        # Many samples of few elements are one wide draw: each sample begins its own counters.
        if len(sample_shape) == 0 or copies >= max(width, 1):
            wide = (_at_least_1d(t, shape) for t in (loc, scale))
            return rsample(*wide, param="std").view(shape)
        if not copies:
            return (loc + scale).expand(0, *loc.shape).reshape(shape)
        return rsample(loc, scale, param="std", num_samples=copies).view(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """As `rsample`, without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) per element of the shape that value and parameters broadcast to."""
        if self._validate_args:
            self._validate_sample(value)
        return normal_log_prob(self, value, 0)


def normal_log_prob(p: Normal, value: Tensor, event_dims: int) -> Tensor:
    """log p(value), summed over the last `event_dims` dimensions, in the parameters' dtype, at
    least float32."""
    loc, scale = p.loc, p.scale
    shape = _common_shape(value, loc)
    if not event_dims or shape.numel() < _FEW:
        if not value.dtype == loc.dtype == scale.dtype in _COMPUTED:
            dtype = _args.compute_dtype(value, loc, scale)
            value, loc, scale = value.to(dtype), loc.to(dtype), scale.to(dtype)
        white = (value - loc) / scale
        each = torch.addcmul(_LOG_NORM - scale.log(), white, white, value=-0.5)
        return each.flatten(-event_dims).sum(-1) if event_dims else each
    lead = shape[: len(shape) - event_dims]
    # Samples of the same posteriors read these once.
    own = p.batch_shape[: len(p.batch_shape) - event_dims]
    if p.batch_shape[len(own) :] != shape[len(lead) :] or lead[len(lead) - len(own) :] != own:
        own = lead
    flat = math.prod(own), math.prod(shape[len(lead) :])
    loc, scale = (_of_shape(t, Size((*own, *shape[len(lead) :])), flat) for t in (loc, scale))
    z = value.expand(shape).reshape(math.prod(lead[: len(lead) - len(own)]), *flat)
    return _monte_carlo_kl.run(z, loc, scale, _STD, prior=False).view(lead)


def normal_kl(p: Normal, q: Normal, event_dims: int) -> Tensor:
    """KL(p || q), summed over the last `event_dims` dimensions of the common batch shape."""
    shape = _common_shape(p.loc, q.loc)
    lead, how = shape, "none"
    flat: Sequence[int] = shape or (1,)
    if event_dims:
        lead, how = shape[: len(shape) - event_dims], "sample"
        if len(lead) != 1 or event_dims > 1:
            flat = math.prod(lead), math.prod(shape[len(lead) :])
    loc, scale = _of_shape(p.loc, shape, flat), _of_shape(p.scale, shape, flat)
    prior: tuple[Tensor, ...] = ()
    if not _is_standard(q):
        # What broadcasts has its gradient summed in the kernel.
        prior = q.loc, q.scale
        if flat != shape:
            prior = _of_shape(q.loc, shape, flat), _of_shape(q.scale, shape, flat)
    kl = gaussian_kl(loc, scale, *prior, param="std", reduction=how)  # type: ignore[arg-type]
    return kl if kl.shape == lead else kl.view(lead)


def _kl_fused_normal(p: FusedNormal, q: Normal) -> Tensor:
    """KL(p || q) per element of the common batch shape."""
    return normal_kl(p, q, 0)


register_kl(FusedNormal, Normal)(_kl_fused_normal)

# Elements up to which the operators that a density's kernel stands for take less time: on one
# thread with AVX2 the two met at 131,072.
_FEW = 1 << 17
# Elements up to which a look at the prior costs less than what it may save.
_SEEN = 1 << 14
_STD = transform_of("std", 0.0, None)
_LOG_NORM = -0.5 * math.log(2 * math.pi)
_COMPUTED = (torch.float32, torch.float64)


def _is_standard(q: Normal) -> bool:
    """True where q is seen to be N(0, 1), of which a kernel need not read anything: of small
    tensors in this machine's memory, which wait for nothing."""
    loc, scale = q.loc, q.scale
    if not loc.is_cpu or loc.requires_grad or scale.requires_grad or not 0 < loc.numel() < _SEEN:
        return False
    if not direct(loc, scale) or needs_reference():
        return False
    ends = (*loc.aminmax(), *scale.aminmax())
    return [end.item() for end in ends] == [0.0, 0.0, 1.0, 1.0]


def _common_shape(one: Tensor, other: Tensor) -> Size:
    """What both broadcast to. `torch.broadcast_shapes` alone takes as long as a small kernel."""
    if one.shape == other.shape or not other.dim():
        return one.shape
    return Size(torch.broadcast_shapes(one.shape, other.shape))


def _of_shape(tensor: Tensor, shape: Size, flat: Sequence[int]) -> Tensor:
    """`tensor` expanded to `shape` and viewed as `flat`, itself where it is so."""
    if tensor.shape == flat:
        return tensor
    return (tensor if tensor.shape == shape else _args.expanded(tensor, shape)).reshape(flat)


def _at_least_1d(tensor: Tensor, shape: Size) -> Tensor:
    """`tensor` expanded to `shape`; a scalar as `[1]`, for the operators want a batch."""
    return tensor.expand(shape if shape else (1,))
