"""`row_nll` by Triton: loss and gradient of the likelihoods with a class dimension.

A program holds the classes of some positions: side by side (params [R, C, S]), or each alone in its
row (S = 1). Up to 1024 classes are read once; more are read twice, by two launches, and classes are
shared out between programs where there are few positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._args import compute_dtype, stored_dtype
from .._options import RowNllOptions
from ._counts_rows import coefficients, sparse_grad, sparse_terms
from ._grid import launch
from ._logistic_mixture_rows import logistic_mixture_nll
from ._softmax_rows import CATEGORICAL, DENSE, SPARSE, softmax_nll, softmax_part, softmax_rest
from ._sums import Sums

# Elements to a thread that stay in registers between the sum and the gradient.
_HELD = 32
_MOST_CLASSES = 1024
# As many programs as _grid starts, and partial sums that one program merges.
_PROGRAMS, _MOST_SPLITS = 4096, 128


def row_nll(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNllOptions,
    need: bool,
    into: Tensor | None = None,
) -> list[Tensor]:
    """The loss and, where needed, its gradient, which may be put `into` params' own memory."""
    dtype = compute_dtype(params)
    rows, classes, inner = params.shape
    if (params.stride(2) != 1 and inner > 1) or (inner == 1 and params.stride(1) != 1 < classes):
        params = params.contiguous()
    groups = {"elem": rows * inner, "sample": rows // options.segments, "sum": 1}[options.reduce]
    shape = {"elem": (rows, inner), "sample": (groups,), "sum": ()}[options.reduce]
    loss = torch.empty(shape, dtype=dtype, device=params.device)
    grad = None
    if need:
        grad = into
        if grad is None:
            stored = stored_dtype(params.dtype)
            grad = torch.empty(params.shape, dtype=stored, device=params.device)
    made = [loss] if grad is None else [loss, grad]
    if not rows * inner:
        return [t.zero_() for t in made]
    partial = None
    if groups != rows * inner:
        partial = loss.new_empty((groups, rows * inner // groups))
    sums = Sums(loss, partial, options.factor)
    mask = None if mask is None else mask.contiguous()
    weight = None if weight is None else weight.to(dtype).contiguous()
    run = _mixture if options.form == "logistic_mixture" else _softmax
    run(params, target, mask, weight, options, grad, sums)
    sums.finish()
    return made


def _softmax(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNllOptions,
    grad: Tensor | None,
    sums: Sums,
) -> None:
    rows, classes, inner = params.shape
    sparse = len(target) == 3
    values = target[-1].contiguous()
    starts, columns = (t.contiguous() for t in target[:2]) if sparse else (None, None)
    target_rows = len(target[0]) - 1 if sparse else values.shape[0]
    form = SPARSE if sparse else CATEGORICAL if options.form == "categorical" else DENSE
    coefficient = terms = log_z = logits = None
    if form != CATEGORICAL and options.numbers[0]:
        coefficient = params.new_empty(target_rows, dtype=torch.float64)
        _start(coefficients, target_rows, params, coefficient, values, starts, classes, BLOCK=512)
    if sparse:
        # Before the logits are overwritten, where the gradient lies there.
        terms = params.new_empty((2, rows), dtype=torch.float64)
        log_z = params.new_empty(rows, dtype=torch.float64) if grad is not None else None
        if grad is not None:
            logits = params.new_empty((rows // target_rows, len(values)), dtype=sums.out.dtype)
        given = (values, starts, columns, target_rows, rows, classes, len(values))
        _start(
            sparse_terms, rows, params, terms, logits, params, *given, params.stride(0), BLOCK=128
        )
    wide = sums.out.dtype == torch.float64
    held = triton.next_power_of_2(max(classes, 1))
    most = _MOST_CLASSES // (2 if wide else 1) // (2 if form == DENSE else 1)
    once = held <= most
    if inner == 1:
        block = held if once else 2048
        positions = max(1, 2048 // block)
        tiles = -(-rows // positions)
    else:
        block = held if once else 64
        positions = max(16, min(2048 // block, 128, triton.next_power_of_2(inner)))
        tiles = rows * -(-inner // positions)
    meta = _meta(params, wide, block, positions)
    sizes = (rows, classes // meta["CLASS_VEC"], inner // meta["VEC"])
    where = (*sizes, params.stride(0) // meta["ROW_VEC"], meta.pop("CLASS_STRIDE"), target_rows)
    factors = (sums.now, options.grad_factor)
    beside = (mask, weight, coefficient, terms, log_z)
    common = {"FORM": form, **meta}
    read = values if not sparse else None
    if once:
        results = (sums.to, grad, params, read)
        _start(softmax_nll, tiles, params, *results, *beside, *where, *factors, **common)
    else:
        blocks = -(-classes // block)
        splits = min(blocks, _MOST_SPLITS, -(-_PROGRAMS // tiles)) if tiles < 1024 else 1
        part = params.new_empty((4, splits, rows * inner), dtype=torch.float64)
        of_split = -(-blocks // splits)
        _start(
            softmax_part, tiles * splits, params, part, params, read, *where, splits, of_split,
            **common,
        )  # fmt: skip
        args = (sums.to, grad, part, params, read, *beside, *where, *factors, splits, of_split)
        merged = triton.next_power_of_2(splits)
        count = tiles * splits if grad is not None else tiles
        _start(softmax_rest, count, params, *args, SPLITS=merged, **common)
    if sparse and grad is not None:
        given = (values, starts, columns, target_rows, rows, classes, len(values))
        others = (mask, weight, terms, log_z, options.grad_factor)
        _start(sparse_grad, rows, params, grad, logits, *given, *others, BLOCK=128)


def _mixture(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNllOptions,
    grad: Tensor | None,
    sums: Sums,
) -> None:
    rows, _, inner = params.shape
    *numbers, mixtures, channels = options.numbers
    held = triton.next_power_of_2(int(mixtures))
    wide = sums.out.dtype == torch.float64
    # One element of a tile to a thread in float64, four in float32: more spill.
    positions = max(1, (256 if wide else 512) // held)
    if inner > 1:
        positions = max(8, min(positions, triton.next_power_of_2(inner)))
    tiles = -(-rows // positions) if inner == 1 else rows * -(-inner // positions)
    meta = _meta(params, False, held, positions, each=1 if wide else 4)
    meta["DTYPE"] = tl.float64 if wide else tl.float32
    stride = meta.pop("CLASS_STRIDE")
    del meta["CLASS_VEC"]
    x = target[0].contiguous()
    _start(
        logistic_mixture_nll, tiles, params, sums.to, grad, params, x, mask, weight, rows,
        inner // meta["VEC"], params.stride(0) // meta["ROW_VEC"], stride, x.shape[0], *numbers,
        math.log(numbers[3]), sums.now, options.grad_factor, MIXTURES=int(mixtures),
        CHANNELS=int(channels), **meta,
    )  # fmt: skip


def _meta(
    params: Tensor, wide: bool, block: int, positions: int, each: int = _HELD // 2
) -> dict[str, Any]:
    """What the kernels are compiled for. Sizes and strides are passed in units of powers of two
    that the compiler knows: it sees an argument's alignment to 16 alone."""
    _, classes, inner = params.shape
    alone = inner == 1
    row_vec = math.gcd(16, params.stride(0))
    vec = math.gcd(16, inner, params.stride(1)) if not alone else 1
    threads = block * positions // (each // 2 if wide else each)
    return {
        "ALONE": alone,
        "VEC": vec,
        "ROW_VEC": row_vec,
        "CLASS_VEC": math.gcd(16, classes) if alone else 1,
        "CLASS_STRIDE": 1 if alone else params.stride(1) // vec,
        "WIDE": (classes + 2 * block) * max(params.stride(1), inner) + 2048 >= 1 << 31,
        "DTYPE": tl.float64 if wide else tl.float32,
        "CLASSES": block,
        "POSITIONS": positions,
        "num_warps": max(1, min(16, threads // 32)),
        # Triton 3.10 turns it off unless asked.
        "enable_fp_fusion": True,
    }


def _start(kernel: Any, programs: int, like: Tensor, *args: Any, **meta: Any) -> None:
    launch(kernel, programs, like.device, *args, **meta)
