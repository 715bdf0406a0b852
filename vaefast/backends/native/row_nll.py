"""`row_nll` by the compiled core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _C
from ..._args import compute_dtype, stored_dtype
from .._options import RowNll
from ._pack import DTYPES, REDUCE, fresh, result
from ._place import place_with

_FORMS = {"categorical": 0, "multinomial": 1, "logistic_mixture": 3}
_SPARSE = 2


def row_nll(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNll,
    need: bool,
    into: Tensor | None = None,
) -> list[Tensor]:
    """The loss and, where needed, its gradient, which may be put `into` params' own memory."""
    dtype = compute_dtype(params)
    stored = stored_dtype(params.dtype)
    if need and stored != params.dtype:
        # The kernels write a gradient in the type of what they read.
        params = params.to(stored)
    rows, classes, inner = params.shape
    if (params.stride(2) != 1 and inner > 1) or (inner == 1 and params.stride(1) != 1 < classes):
        params = params.contiguous()
    shapes = {"elem": (rows, inner), "sample": (rows // options.segments,), "sum": ()}
    loss = torch.empty(shapes[options.reduce], dtype=dtype, device=params.device)
    grad = None
    if need:
        grad = into if into is not None else fresh(params.shape, stored, params.device)
    sparse = len(target) == 3
    values = target[-1].contiguous()
    starts, columns = (
        (t.to(torch.int64).contiguous() for t in target[:2]) if sparse else (None,) * 2
    )
    target_rows = len(target[0]) - 1 if sparse else values.shape[0]
    mask = None if mask is None else mask.contiguous()
    weight = None if weight is None else weight.to(dtype).contiguous()
    call = (
        (rows, classes, inner, options.segments, params.stride(0), params.stride(1), target_rows),
        (params.data_ptr(), DTYPES[params.dtype]),
        (values.data_ptr(), DTYPES[values.dtype], _pointer(starts), _pointer(columns), len(values)),
        (_pointer(mask), _pointer(weight)),
        (
            _SPARSE if sparse else _FORMS[options.form],
            options.numbers,
            REDUCE[options.reduce],
            options.factor,
            options.grad_factor,
            dtype == torch.float64,
        ),
        loss.data_ptr(),
        result(grad),
    )
    where = (
        torch.get_num_threads() if params.is_cpu else place_with(params, _C.row_workspace(*call))
    )
    _C.row_nll(*call, where)
    return [loss] if grad is None else [loss, grad]


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
