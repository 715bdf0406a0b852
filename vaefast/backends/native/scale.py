"""`scale_` by the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _C
from ._pack import pack, result


def scale_(grad: Tensor, upstream: Tensor, factor: float) -> None:
    """grad *= upstream * factor in place; nothing is touched where that is 1."""
    grid, packed, _alive = pack(grad.shape, min(grad.dim(), 1), (grad, upstream))
    _C.scale(grid, result(grad), packed[1], factor, torch.get_num_threads())
