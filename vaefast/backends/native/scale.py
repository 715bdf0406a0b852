"""`scale_` by the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _C
from ._pack import DTYPES, Packed, pack, result
from ._place import place


def scale_(grad: Tensor, upstream: Tensor) -> None:
    """grad *= upstream in place; nothing is touched where that is 1."""
    if upstream.dim() == 0:
        # The usual loss: no layout to work out.
        grid = (1, grad.numel(), 1)
        by: Packed | None = (upstream.data_ptr(), DTYPES[upstream.dtype], 1, 1, 0, 0, 1.0)
        _alive: object = upstream
    else:
        grid, packed, _alive = pack(grad.shape, min(grad.dim(), 1), (grad, upstream))
        by = packed[1]
    where = torch.get_num_threads() if grad.is_cpu else place(grad, grid)
    _C.scale(grid, result(grad), by, where)
