"""`nll` by Triton: loss and gradients in one pass; sums over programs take a small launch more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._args import compute_dtype, stored_dtype
from .._options import BINARIZE, NllOptions
from ._grid import launch, load, share, tile_at
from ._philox import tile_noise
from ._sums import Sums, room
from .likelihoods import FORMS, HEAVY

_PARAMS, _NUMBERS = 3, 6


def nll(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    sparse: Sequence[Tensor],
    options: NllOptions,
    need: Sequence[bool],
) -> list[Tensor]:
    """The loss and the needed gradients; no target is `sparse` here."""
    dtype, device = compute_dtype(*params), target.device
    shape, lead = params[0].shape, options.lead
    per_sample = shape[:lead]
    loss = torch.empty(options.loss_shape(shape), dtype=dtype, device=device)
    grads = [
        None
        if not wanted
        else torch.empty(per_sample, dtype=dtype, device=device)
        if index == options.scalar
        else torch.empty(p.shape, dtype=stored_dtype(p.dtype), device=device)
        for index, (p, wanted) in enumerate(zip(params, need, strict=True))
    ]
    found = [g for g in grads if g is not None]
    if not shape.numel():
        loss.zero_().mul_(options.factor)
        return [loss, *(g.zero_() for g in found)]
    scalar = grads[options.scalar] if options.scalar >= 0 else None
    over = {"elem": ""}.get(options.reduce, "sample" if scalar is not None else options.reduce)
    copies = shape[0] if lead == 2 else 1
    tensors = (*params, *[None] * (_PARAMS - len(params)), target, mask, weight)
    rowwise = state is not None and (state.dim() > 1 or copies > 1)
    heavy = options.form in HEAVY
    work = share(shape, lead, tensors, dtype, over, rowwise=rowwise, heavy=heavy)
    sums: list[Sums] = []
    if over:
        sums.append(room(work, over, options.reduce, loss, options.factor))
    if scalar is not None:
        sums.append(room(work, over, "sample", scalar, options.grad_factor))
    stored = [None if index == options.scalar else g for index, g in enumerate(grads)]
    launch(
        _nll,
        work.programs,
        device,
        sums[0].to if over else loss,
        None if scalar is None else sums[1].to,
        *stored,
        *[None] * (_PARAMS - len(params)),
        *work.operands[: _PARAMS + 3],
        state,
        options.offset,
        *work.sizes,
        work.rows // copies if copies > 1 else None,
        *options.numbers,
        *[0.0] * (_NUMBERS - len(options.numbers)),
        options.uint8_scale,
        sums[0].now if over else options.factor,
        sums[1].now if scalar is not None else 1.0,
        options.grad_factor,
        FORM=FORMS[options.form],
        OVER=over,
        SCALAR=options.scalar,
        DIVIDE=target.dtype == torch.uint8 and options.uint8_scale != 1.0,
        PER_SAMPLE=state is not None and state.dim() > 1,
        ALIGNED=work.cols % 4 == 0,
        BINARIZE=BINARIZE,
        **work.meta,
    )
    for stage in sums:
        stage.finish()
    return [loss, *found]


@triton.jit(do_not_specialize=["offset"])
def _nll(
    loss,
    scalar_grad,
    grad0,
    grad1,
    grad2,
    theta0,
    theta1,
    theta2,
    target,
    mask,
    weight,
    state,
    offset: tl.int64,
    rows,
    cols,
    segments,
    row_tiles,
    col_tiles,
    splits,
    target_rows,
    n0: tl.float64,
    n1: tl.float64,
    n2: tl.float64,
    n3: tl.float64,
    n4: tl.float64,
    n5: tl.float64,
    uint8_scale: tl.float64,
    factor: tl.float64,
    scalar_factor: tl.float64,
    grad_factor: tl.float64,
    FORM: tl.constexpr,
    OVER: tl.constexpr,
    SCALAR: tl.constexpr,
    DIVIDE: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BINARIZE: tl.constexpr,
    GROUP: tl.constexpr,
    VEC: tl.constexpr,
    WIDE: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    # loss: the elements, or sums as _sums.room gives them; scalar_grad: likewise; grad0 to grad2:
    # [rows, cols]; theta0 to weight: views over [rows, cols]; state: [2], or one per sample of
    # target_rows rows, after which the target repeats.
    pid = tl.program_id(0)
    cols = cols * VEC
    if OVER == "sample":
        own = pid // splits
        begin, end, step = own * col_tiles + pid % splits, (own + 1) * col_tiles, splits
    else:
        own = pid
        begin, end, step = pid, row_tiles * col_tiles, tl.num_programs(0)
    numbers = (
        tl.full((), n0, DTYPE),
        tl.full((), n1, DTYPE),
        tl.full((), n2, DTYPE),
        tl.full((), n3, DTYPE),
        tl.full((), n4, DTYPE),
        tl.full((), n5, DTYPE),
    )
    factor = tl.full((), factor, DTYPE)
    grad_factor = tl.full((), grad_factor, DTYPE)
    acc = tl.zeros((ROWS, COLS), DTYPE)
    scalar_acc = tl.zeros((ROWS, COLS), DTYPE)
    for tile in range(begin, end, step):
        row, first, columns, live_row, live = tile_at(tile, col_tiles, rows, cols, ROWS, COLS, WIDE)
        x = load(target, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        if DIVIDE:
            x = _divided(x, tl.full((), uint8_scale, DTYPE))
        if state is not None:
            drawn = row if target_rows is None else row % target_rows
            u = tile_noise(
                state, offset, drawn, first, live_row, cols, segments, 0,
                BINARIZE, False, PER_SAMPLE, ALIGNED, GROUP, ROWS, COLS, DTYPE,
            )  # fmt: skip
            x = tl.where(u <= x, 1.0, 0.0).to(DTYPE)
        t0 = load(theta0, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        t1, t2 = t0, t0
        if theta1 is not None:
            t1 = load(theta1, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        if theta2 is not None:
            t2 = load(theta2, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
        found = FORM(x, (t0, t1, t2), numbers)
        shown = live
        if mask is not None:
            shown = load(mask, row, columns, live, live_row, VEC, GROUP)
        value = found[0]
        scale = grad_factor
        if weight is not None:
            w = load(weight, row, columns, live, live_row, VEC, GROUP).to(DTYPE)
            value = value * w
            scale = w * grad_factor
        value = tl.where(shown, value, 0.0)
        out = row * cols + columns
        if OVER == "":
            tl.store(loss + out, value * factor, mask=live)
        else:
            acc += tl.where(live, value, 0.0)
        if grad0 is not None:
            tl.store(grad0 + out, tl.where(shown, found[1] * scale, 0.0), mask=live)
        if grad1 is not None:
            tl.store(grad1 + out, tl.where(shown, found[2] * scale, 0.0), mask=live)
        if grad2 is not None:
            tl.store(grad2 + out, tl.where(shown, found[3] * scale, 0.0), mask=live)
        if scalar_grad is not None:
            each = found[SCALAR + 1]
            if weight is not None:
                each = each * w
            scalar_acc += tl.where(live & shown, each, 0.0)
    if OVER == "sample":
        place = own * ROWS + tl.arange(0, ROWS)
        partial = place * splits + pid % splits
        tl.store(loss + partial, tl.sum(acc, 1) * factor, mask=place < rows)
        if scalar_grad is not None:
            slope = tl.sum(scalar_acc, 1) * tl.full((), scalar_factor, DTYPE)
            tl.store(scalar_grad + partial, slope, mask=place < rows)
    elif OVER == "sum":
        tl.store(loss + pid, tl.sum(acc) * factor)


@triton.jit
def _divided(x, by) -> Any:
    # To the last bit: a binary target drawn from x must be the same on every backend.
    return x / by if x.dtype == tl.float64 else tl.div_rn(x, by)
