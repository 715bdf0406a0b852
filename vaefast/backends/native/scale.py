"""`scale_` by the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _C
from ._pack import DTYPES, pack, result


def scale_(grad: Tensor, upstream: Tensor, factor: float) -> None:
    """grad *= upstream * factor in place; nothing is touched where that is 1."""
    if upstream.dim() == 0:
        # The usual loss: no layout to work out.
        whole = (upstream.data_ptr(), DTYPES[upstream.dtype], 1, 1, 0, 0, 1.0)
        _C.scale((1, grad.numel(), 1), result(grad), whole, factor, torch.get_num_threads())
        return
    grid, packed, _alive = pack(grad.shape, min(grad.dim(), 1), (grad, upstream))
    _C.scale(grid, result(grad), packed[1], factor, torch.get_num_threads())
