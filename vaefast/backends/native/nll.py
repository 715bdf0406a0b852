"""`nll` by the compiled core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _C
from ..._args import compute_dtype, stored_dtype
from .._options import Nll
from ._pack import DTYPES, REDUCE, fresh, pack, result, stream
from ._place import place

_FORMS = _C.forms()


def nll(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    sparse: Sequence[Tensor],
    options: Nll,
    need: Sequence[bool],
    into: Sequence[Tensor | None] = (),
) -> list[Tensor]:
    """The loss and the needed gradients, which may be put `into` the parameters' own memory.

    `sparse`: (row starts, columns) of a CSR matrix [B, V], whose values `target` are; on CPU.
    """
    dtype = compute_dtype(*params)
    first, lead = params[0], options.lead
    shape = first.shape
    grid, packed, _alive = pack(shape, lead, (*params, None if sparse else target, mask, weight))
    per_sample = shape[:lead]
    if options.reduce == "elem":
        loss = fresh(shape, dtype, target.device)
    else:
        loss = torch.empty(
            per_sample if options.reduce == "sample" else (), dtype=dtype, device=target.device
        )
    grads = [
        None
        if not wanted
        else torch.empty(per_sample, dtype=dtype, device=p.device)
        if index == options.scalar
        else into[index]
        if into
        else fresh(p.shape, stored_dtype(p.dtype), p.device)
        for index, (p, wanted) in enumerate(zip(params, need, strict=True))
    ]
    count = len(params)
    x = (target.data_ptr(), DTYPES[target.dtype], 1, 1, 0, 1, 1.0) if sparse else packed[count]
    if x is not None and target.dtype == torch.uint8:
        x = (*x[:6], options.uint8_scale)
    copies = shape[0] if lead == 2 else 1
    target_rows = grid[0] // copies if copies else 0
    reduce, scalar = REDUCE[options.reduce], options.scalar
    _C.nll(
        grid,
        tuple(packed[:count]),
        x,
        packed[count + 1],
        packed[count + 2],
        stream(state, options.offset),
        (
            _FORMS[options.form],
            options.numbers,
            scalar,
            target_rows,
            reduce,
            options.factor,
            options.grad_factor,
            dtype == torch.float64,
        ),
        loss.data_ptr(),
        tuple([result(g) for g in grads]),
        torch.get_num_threads()
        if first.is_cpu
        else place(first, grid, reduce, scalar >= 0 and need[scalar], target_rows),
        *(t.data_ptr() for t in sparse),
    )
    return [loss, *[g for g in grads if g is not None]]
