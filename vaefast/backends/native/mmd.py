"""`mmd` by the compiled core."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _C
from .._options import MmdOptions
from ._place import place_with


def mmd(x: Tensor, y: Tensor, options: MmdOptions, need: list[bool]) -> list[Tensor]:
    """The squared discrepancy and its gradients in those of x and y that `need` asks for."""
    x, y = x.contiguous(), y.contiguous()
    value = x.new_empty(())
    grads = [torch.empty_like(t) if n else None for t, n in zip((x, y), need, strict=True)]
    n, m = x.shape[0], y.shape[0]
    call = (
        (n, m, x.shape[1]),
        (x.data_ptr(), y.data_ptr()),
        options.rbf,
        options.scales,
        options.factors(n, m),
        (value.data_ptr(), *(0 if g is None else g.data_ptr() for g in grads)),
        x.dtype == torch.float64,
    )
    where = torch.get_num_threads() if x.is_cpu else place_with(x, _C.mmd_workspace(*call))
    _C.mmd(*call, where)
    return [value, *(g for g in grads if g is not None)]
