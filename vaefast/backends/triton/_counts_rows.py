"""Kernels of a row of multinomial counts: its coefficient, and its entries where it is sparse."""

from __future__ import annotations

import triton
import triton.language as tl

from ._gamma import factorial_rest
from ._math import exp


@triton.jit
def coefficients(out, values, starts, classes, BLOCK: tl.constexpr):
    # out: [T], log(N! / prod x!); values: [T, classes], or those of a CSR matrix by its starts
    row = tl.program_id(0).to(tl.int64)
    begin, end = row * classes, (row + 1) * classes
    if starts is not None:
        begin = tl.load(starts + row).to(tl.int64)
        end = tl.load(starts + row + 1).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float64)
    factorials = tl.zeros((BLOCK,), tl.float64)
    for start in range(begin, end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(values + k, mask=k < end, other=0).to(tl.float64)
        total += x
        # Most counts are 0 or 1, whose logarithm is 0. Not so: a NaN.
        if tl.max(tl.where((x == 0.0) | (x == 1.0), 0, 1)) > 0:
            factorials += _log_factorial(x)
    whole = tl.sum(total)
    tl.store(
        out + row, tl.sum(_log_factorial(whole + tl.zeros((1,), tl.float64))) - tl.sum(factorials)
    )


@triton.jit
def sparse_terms(
    terms, logits, theta, values, starts, columns, target_rows, rows, classes, stored, row_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # terms: [2, rows], the sums of x and of x logit; logits: [rows / T, stored], those of the
    # entries; theta: [rows, classes]
    row = tl.program_id(0).to(tl.int64)
    own = row % target_rows
    begin = tl.load(starts + own).to(tl.int64)
    end = tl.load(starts + own + 1).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float64)
    dot = tl.zeros((BLOCK,), tl.float64)
    for start in range(begin, end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        live = k < end
        x = tl.load(values + k, mask=live, other=0).to(tl.float64)
        c = tl.load(columns + k, mask=live, other=0).to(tl.int64)
        inside = live & (c >= 0) & (c < classes)
        logit = tl.load(theta + row * row_stride + c, mask=inside, other=0).to(tl.float64)
        total += x
        dot += tl.where(x == 0.0, 0.0, tl.where(inside, x * logit, float("nan")))
        if logits is not None:
            tl.store(logits + row // target_rows * stored + k, logit, mask=live)
    tl.store(terms + row, tl.sum(total))
    tl.store(terms + rows + row, tl.sum(dot))


@triton.jit
def sparse_grad(
    grad, logits, values, starts, columns, target_rows, rows, classes, stored,
    mask, weight, terms, log_z, grad_factor: tl.float64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # grad: [rows, classes], whole but for the entries; the rest as `sparse_terms` and
    # `softmax_nll` have it
    row = tl.program_id(0).to(tl.int64)
    own = row % target_rows
    begin = tl.load(starts + own).to(tl.int64)
    end = tl.load(starts + own + 1).to(tl.int64)
    if mask is not None:
        # A row left out has its zeros already.
        end = tl.where(tl.load(mask + own) != 0, end, begin)
    scale = tl.full((), grad_factor, tl.float64)
    if weight is not None:
        scale *= tl.load(weight + own).to(tl.float64)
    total = tl.load(terms + row)
    normaliser = tl.load(log_z + row)
    for start in range(begin, end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        live = k < end
        x = tl.load(values + k, mask=live, other=0).to(tl.float64)
        c = tl.load(columns + k, mask=live, other=0).to(tl.int64)
        inside = live & (c >= 0) & (c < classes)
        logit = tl.load(logits + row // target_rows * stored + k, mask=live, other=0).to(tl.float64)
        g = scale * (total * exp(logit - normaliser) - x)
        tl.store(grad + row * classes + c, g.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def _log_factorial(x):
    """log(x!), in double; 0 for 0 and 1."""
    small = (x == 0.0) | (x == 1.0)
    z = tl.where(small, 2.0, x)
    log_z = tl.log(z)
    return tl.where(small, 0.0, (z * log_z - z) + factorial_rest(z, 1.0 / z, log_z))
