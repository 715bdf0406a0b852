"""Reconstruction likelihoods as differentiable PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._args import compute_dtype
from .._options import BINARIZE, NllOptions
from .likelihoods import FORMULAS
from .noise import noise
from .sample_kl import reduce, unmasked


def nll(
    params: tuple[Tensor, ...],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    options: NllOptions,
) -> Tensor:
    """-log p(target | params), reduced as `options` says."""
    dtype = compute_dtype(*params)
    x = unmasked(wide_target(target, state, options, dtype), mask)
    wide = tuple(
        p.to(dtype) if index == options.scalar else unmasked(p.to(dtype), mask)
        for index, p in enumerate(params)
    )
    elements = FORMULAS[options.form](x, wide, options.numbers)
    return reduce(elements, mask, weight, options.reduce, options.lead) * options.factor


def wide_target(
    target: Tensor, state: Tensor | None, options: NllOptions, dtype: torch.dtype
) -> Tensor:
    """The target in the compute dtype: uint8 scaled, and binarised where there is a state."""
    x = target.to(dtype)
    if target.dtype == torch.uint8 and options.uint8_scale != 1.0:
        x = x / options.uint8_scale
    if state is None:
        return x
    u = noise(state, target.shape, dtype, "uniform", BINARIZE, options.offset)
    return (u <= x).to(dtype)
