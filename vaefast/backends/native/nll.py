"""`nll` by the compiled core."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import _C
from ..._args import compute_dtype
from .._options import Nll
from ..layout import plan
from ._pack import REDUCE, fresh, fresh_like, operand, result, stream

_FORMS = _C.forms()


def nll(
    params: tuple[Tensor, ...],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    options: Nll,
    need: list[bool],
) -> list[Tensor]:
    """The loss and the needed gradients."""
    dtype = compute_dtype(*params)
    shape, lead = params[0].shape, options.lead
    grid = plan(shape, lead, (*params, target, mask, weight))
    if options.reduce == "elem":
        loss = fresh(shape, dtype, target.device)
    else:
        loss = torch.empty(
            shape[:lead] if options.reduce == "sample" else (), dtype=dtype, device=target.device
        )
    grads = [
        None
        if not wanted
        else torch.empty(shape[:lead], dtype=dtype, device=p.device)
        if index == options.scalar
        else fresh_like(p)
        for index, (p, wanted) in enumerate(zip(params, need, strict=True))
    ]
    count = len(params)
    views = grid.views
    divisor = options.uint8_scale if target.dtype == torch.uint8 else 1.0
    copies = math.prod(shape[: lead - 1])
    _C.nll(
        (grid.rows, grid.cols, grid.segments),
        tuple(map(operand, views[:count])),
        operand(views[count], divisor),
        operand(views[count + 1]),
        operand(views[count + 2]),
        stream(state, options.offset),
        (
            _FORMS[options.form],
            options.numbers,
            options.scalar,
            grid.rows // copies if copies else 0,
            REDUCE[options.reduce],
            options.factor,
            options.grad_factor,
            dtype == torch.float64,
        ),
        loss.data_ptr(),
        tuple(map(result, grads)),
        torch.get_num_threads(),
    )
    return [loss, *(g for g in grads if g is not None)]
