"""Kernels of log-softmax, loss and gradient over a class dimension."""

from __future__ import annotations

import triton
import triton.language as tl

from ._math import exp, exp_close

# What the target is: class indices, counts of every class, or counts read by another kernel.
CATEGORICAL, DENSE, SPARSE = 0, 1, 2


@triton.jit
def softmax_nll(
    loss, grad, theta, target, mask, weight, coefficient, terms, log_z,
    rows, classes, inner, row_stride, class_stride, target_rows,
    factor: tl.float64, grad_factor: tl.float64,
    FORM: tl.constexpr, ALONE: tl.constexpr, VEC: tl.constexpr, ROW_VEC: tl.constexpr,
    CLASS_VEC: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr, CLASSES: tl.constexpr,
    POSITIONS: tl.constexpr,
):  # fmt: skip
    # loss: a value per position; grad: [rows, classes, inner]; theta: the same by its strides;
    # target, mask, weight: see `_ends`. All classes in one tile.
    classes, inner = classes * CLASS_VEC, inner * VEC
    row, at, live = position(tl.program_id(0), rows, inner, ALONE, POSITIONS)
    own = target_place(row, at, target_rows, inner)
    c = _classes(0, WIDE, CLASSES)
    here = live[None, :] & (c < classes)
    top, sum_exp, total, dot, e, x = _summed(
        theta, target, row, at, own, c, here, classes, inner, row_stride, class_stride,
        live, target_rows, FORM, VEC, ROW_VEC, DTYPE,
    )  # fmt: skip
    each, share, keep = _ends(
        loss, mask, weight, coefficient, terms, log_z, row, at, own, live, top, sum_exp, total,
        dot, rows, inner, target_rows, factor, grad_factor, FORM, live, DTYPE,
    )  # fmt: skip
    if grad is not None:
        _store(grad, row, at, c, here, e, x, each, share, keep, classes, inner, FORM)


@triton.jit
def softmax_part(
    part, theta, target, rows, classes, inner, row_stride, class_stride, target_rows,
    splits, blocks,
    FORM: tl.constexpr, ALONE: tl.constexpr, VEC: tl.constexpr, ROW_VEC: tl.constexpr,
    CLASS_VEC: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr, CLASSES: tl.constexpr,
    POSITIONS: tl.constexpr,
):  # fmt: skip
    # part: [4, splits, rows * inner], the highest logit, the sum of e^(logit - it), the sum of
    # counts and of count times logit: of `blocks` blocks of classes.
    classes, inner = classes * CLASS_VEC, inner * VEC
    pid = tl.program_id(0)
    row, at, live = position(pid // splits, rows, inner, ALONE, POSITIONS)
    own = target_place(row, at, target_rows, inner)
    split = pid % splits
    highest = tl.full((POSITIONS,), float("-inf"), DTYPE)
    sums = tl.zeros((POSITIONS,), tl.float64)
    totals = tl.zeros((POSITIONS,), tl.float64)
    dots = tl.zeros((POSITIONS,), tl.float64)
    for block in range(split * blocks, (split + 1) * blocks):
        c = _classes(block, WIDE, CLASSES)
        here = live[None, :] & (c < classes)
        top, sum_exp, total, dot, _, _ = _summed(
            theta, target, row, at, own, c, here, classes, inner, row_stride, class_stride,
            live, target_rows, FORM, VEC, ROW_VEC, DTYPE,
        )  # fmt: skip
        new = tl.where(top > highest, top, highest)
        sums = sums * _lowered(highest, new) + sum_exp * _lowered(top, new)
        highest = new
        totals += total
        dots += dot
    count = tl.full((), rows, tl.int64) * inner
    to = part + split * count + row.to(tl.int64) * inner + at
    field = splits * count
    tl.store(to, highest.to(tl.float64), mask=live)
    tl.store(to + field, sums, mask=live)
    tl.store(to + 2 * field, totals, mask=live)
    tl.store(to + 3 * field, dots, mask=live)


@triton.jit
def softmax_rest(
    loss, grad, part, theta, target, mask, weight, coefficient, terms, log_z,
    rows, classes, inner, row_stride, class_stride, target_rows,
    factor: tl.float64, grad_factor: tl.float64, splits, blocks,
    SPLITS: tl.constexpr,
    FORM: tl.constexpr, ALONE: tl.constexpr, VEC: tl.constexpr, ROW_VEC: tl.constexpr,
    CLASS_VEC: tl.constexpr, WIDE: tl.constexpr, DTYPE: tl.constexpr, CLASSES: tl.constexpr,
    POSITIONS: tl.constexpr,
):  # fmt: skip
    # As `softmax_nll`, from what `softmax_part` left; without grad a program per tile.
    classes, inner = classes * CLASS_VEC, inner * VEC
    pid = tl.program_id(0)
    shared = 1 if grad is None else splits
    row, at, live = position(pid // shared, rows, inner, ALONE, POSITIONS)
    own = target_place(row, at, target_rows, inner)
    split = pid % shared
    s = tl.arange(0, SPLITS)[:, None]
    count = tl.full((), rows, tl.int64) * inner
    place = part + (s * count + (row.to(tl.int64) * inner + at)[None, :])
    there = (s < splits) & live[None, :]
    field = splits * count
    tops = tl.load(place, mask=there, other=float("-inf"))
    top = tl.max(tops, 0)
    lowered = _lowered(tops, tl.broadcast_to(top[None, :], tops.shape))
    sum_exp = tl.sum(tl.load(place + field, mask=there, other=0.0) * lowered, 0)
    total = tl.sum(tl.load(place + 2 * field, mask=there, other=0.0), 0)
    dot = tl.sum(tl.load(place + 3 * field, mask=there, other=0.0), 0)
    each, share, keep = _ends(
        loss, mask, weight, coefficient, terms, log_z, row, at, own, live, top.to(DTYPE), sum_exp,
        total, dot, rows, inner, target_rows, factor, grad_factor, FORM,
        live & (split + tl.zeros((POSITIONS,), tl.int32) == 0), DTYPE,
    )  # fmt: skip
    if grad is not None:
        top = tl.where(top == float("-inf"), 0.0, top).to(DTYPE)
        for block in range(split * blocks, (split + 1) * blocks):
            c = _classes(block, WIDE, CLASSES)
            here = live[None, :] & (c < classes)
            logit = _logits(theta, row, at, c, here, row_stride, class_stride, VEC, ROW_VEC, DTYPE)
            x = _counts(target, row, own, c, here, live, classes, inner, target_rows, FORM, DTYPE)
            e = exp(logit - top[None, :])
            _store(grad, row, at, c, here, e, x, each, share, keep, classes, inner, FORM)


@triton.jit
def position(tile, rows, inner, ALONE: tl.constexpr, POSITIONS: tl.constexpr):
    """The rows and places in them, [POSITIONS], of a tile, and which of them there are."""
    i = tl.arange(0, POSITIONS)
    if ALONE:
        row = tile.to(tl.int64) * POSITIONS + i
        return row, i * 0, row < rows
    else:
        per_row = (inner + POSITIONS - 1) // POSITIONS
        row = (tile // per_row).to(tl.int64)
        at = tile % per_row * POSITIONS + i
        return row + tl.zeros((POSITIONS,), tl.int64), at, at < inner


@triton.jit
def target_place(row, at, target_rows, inner):
    return row % target_rows * inner + at


@triton.jit
def _classes(block, WIDE: tl.constexpr, CLASSES: tl.constexpr):
    c = block * CLASSES + tl.arange(0, CLASSES)[:, None]
    return c.to(tl.int64) if WIDE else c


@triton.jit
def _lowered(top, new):
    """e^(top - new), in double; 0 where there was no logit but -inf."""
    by = exp(top.to(tl.float64) - new.to(tl.float64))
    return tl.where(top == new, 1.0, by)


@triton.jit
def _logits(
    theta, row, at, c, here, row_stride, class_stride,
    VEC: tl.constexpr, ROW_VEC: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    first = theta + row * (row_stride * ROW_VEC) + at
    place = first[None, :] + c * (class_stride * VEC)
    return tl.load(place, mask=here, other=float("-inf")).to(DTYPE)


@triton.jit
def _counts(
    target, row, own, c, here, live, classes, inner, target_rows,
    FORM: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The counts of a tile's classes."""
    if FORM == 0:
        index = tl.load(target + own, mask=live, other=0).to(tl.int64)
        return tl.where(c == index[None, :], 1.0, 0.0).to(DTYPE)
    elif FORM == 1:
        first = target + row % target_rows * classes
        return tl.load(first[None, :] + c, mask=here, other=0).to(DTYPE)
    else:
        return tl.zeros(here.shape, DTYPE)


@triton.jit
def _summed(
    theta, target, row, at, own, c, here, classes, inner, row_stride, class_stride,
    live, target_rows, FORM: tl.constexpr, VEC: tl.constexpr, ROW_VEC: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """A tile's highest logits and sums, [POSITIONS], its exponentials and its counts."""
    logit = _logits(theta, row, at, c, here, row_stride, class_stride, VEC, ROW_VEC, DTYPE)
    x = _counts(target, row, own, c, here, live, classes, inner, target_rows, FORM, DTYPE)
    top = tl.max(logit, 0)
    # Of -inf alone: any finite number gives 0.
    below = logit - tl.where(top == float("-inf"), 0.0, top)[None, :]
    # A sum's error is multiplied by the row's counts.
    e = exp(below) if FORM == 0 else exp_close(below)
    if FORM == 0:
        total = tl.sum(tl.where(here, x, 0.0), 0).to(tl.float64)
        dot = tl.sum(tl.where(x == 0.0, 0.0, logit), 0).to(tl.float64)
        sum_exp = tl.sum(e, 0).to(tl.float64)
    else:
        # The terms of a row of large counts cancel.
        counts = x.to(tl.float64)
        total = tl.sum(counts, 0)
        dot = tl.sum(tl.where(x == 0.0, 0.0, counts * logit.to(tl.float64)), 0)
        sum_exp = tl.sum(e.to(tl.float64), 0)
    return top, sum_exp, total, dot, e, x


@triton.jit
def _ends(
    loss, mask, weight, coefficient, terms, log_z, row, at, own, live, top, sum_exp, total, dot,
    rows, inner, target_rows, factor, grad_factor, FORM: tl.constexpr, write, DTYPE: tl.constexpr,
):  # fmt: skip
    """Writes the losses; gives what the gradient is multiplied by, and the positions kept."""
    # target: [target_rows, inner] or [target_rows, classes]; mask, weight: [target_rows, inner];
    # coefficient: [target_rows]; terms: [2, rows]; log_z: [rows]
    if FORM == 2:
        total = tl.load(terms + row, mask=live, other=0.0)
        dot = tl.load(terms + rows + row, mask=live, other=0.0)
    if FORM == 0:
        # No class has the target's index.
        dot = tl.where(total == 0.0, float("nan"), dot)
        total = tl.full(total.shape, 1.0, tl.float64)
        value = ((top - dot.to(DTYPE)) + tl.log(sum_exp.to(DTYPE))).to(tl.float64)
    else:
        normaliser = top.to(tl.float64) + tl.log(sum_exp)
        value = total * normaliser - dot
        if coefficient is not None:
            value -= tl.load(coefficient + row % target_rows, mask=live, other=0.0)
        if log_z is not None:
            tl.store(log_z + row, normaliser, mask=write)
    keep = live
    each = tl.full(live.shape, grad_factor, tl.float64)
    if mask is not None:
        keep = live & (tl.load(mask + own, mask=live, other=0) != 0)
    if weight is not None:
        w = tl.load(weight + own, mask=live, other=0.0).to(tl.float64)
        value *= w
        each *= w
    value = tl.where(keep, value * factor, 0.0)
    tl.store(loss + row * inner + at, value.to(DTYPE), mask=write)
    return each.to(DTYPE), (each * total / sum_exp).to(DTYPE), keep


@triton.jit
def _store(grad, row, at, c, here, e, x, each, share, keep, classes, inner, FORM: tl.constexpr):
    g = e * share[None, :]
    if FORM != 2:
        g -= each[None, :] * x
    g = tl.where(keep[None, :], g, 0.0)
    first = grad + row * classes * inner + at
    tl.store(first[None, :] + c * inner, g, mask=here)
