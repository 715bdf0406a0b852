"""What the operators of a posterior hand to the compiled core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._args import PARAMS
from .._options import Posterior
from ._pack import REDUCE, Packed, fresh, fresh_like, pack

_PARAM = {name: index for index, name in enumerate(PARAMS)}


def gradient(parameter: Tensor, mu: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for a gradient of mu's shape; one that was broadcast is summed afterwards, and not in
    half precision: `dtype` is the arithmetic's."""
    if parameter.shape == mu.shape:
        return fresh_like(parameter)
    return fresh(mu.shape, dtype, mu.device)


def pack_samples(
    mu: Tensor, operands: Sequence[Tensor | None], options: Posterior
) -> tuple[tuple[int, int, int], list[Packed | None], object]:
    """As `pack`; several samples are a leading dimension, and the grid is one sample's."""
    samples = options.num_samples
    if samples <= 0:
        return pack(mu.shape, 1, operands)
    (rows, cols, segments), packed, alive = pack(torch.Size((samples, *mu.shape)), 2, operands)
    return (rows // samples, cols, segments), packed, alive


def settings_of(options: Posterior, dtype: torch.dtype) -> tuple[object, ...]:
    """The settings as the core reads them; `dtype`: the arithmetic's."""
    (param, min_std, clamp), samples, temperature, _, reduce, factor = options
    low, high = clamp[:2] if clamp else (0.0, 0.0)
    return (
        _PARAM[param],
        min_std,
        len(clamp) - 1 if clamp else 0,
        low,
        high,
        1 if samples == 0 else max(samples, 0),
        temperature,
        REDUCE[reduce],
        factor,
        dtype == torch.float64,
    )
