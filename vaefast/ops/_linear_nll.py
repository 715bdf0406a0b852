"""The registered operator of a linear layer and its likelihood, and its autograd function.

As `_nll`: the gradients are made in the forward pass, beside the loss; only for an upstream
gradient per row are they made in the backward pass, with that as the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import grad_needed
from .._explain import served
from ..backends import linear_nll as chunked
from ..backends._options import LinearNllOptions
from ..backends.linear_nll import Maybe
from ..backends.reference import linear_nll as reference
from ._autograd import (
    by_reference,
    distinct,
    keep,
    kept,
    needs_reference,
    reference_grads,
    scaled,
)
from ._register import Operator, settled


def run(
    h: Tensor,
    weights: Maybe,
    biases: Maybe,
    scalar: Tensor | None,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: LinearNllOptions,
    factor: float | None,
) -> Tensor:
    """The loss of each row, or `factor` times their sum."""
    backend = backends.select_form(h.device, options.form, "nll", h.dtype)
    compiling = torch.compiler.is_compiling()
    if needs_reference(weight, *target) or (compiling and backend == "reference"):
        served("linear_nll", "reference", "reference")
        rows = reference.linear_nll(h, weights, biases, scalar, target, mask, weight, options)
        return rows if factor is None else rows.sum() * factor
    options, numbers = settled(options._replace(grad_factor=1.0 if factor is None else factor))
    leaves = (h, *weights, *biases, scalar)
    if not compiling:
        # torch's dispatcher does not look into a list of tensors that may be absent.
        leaves = tuple([t.resolve_neg() if t is not None and t.is_neg() else t for t in leaves])
    if grad_needed(*leaves):
        parts = len(target)
        how = (numbers, options, factor is not None, backend, parts)
        loss: Tensor = _LinearNllFunction.apply(*distinct(mask, weight, *how, *target, *leaves))
        return loss
    need = [False] * len(leaves)
    rows = _call(leaves, target, mask, weight, numbers, options, need, backend)[0]
    return rows if factor is None else _total(rows, numbers, options)


def _total(rows: Tensor, numbers: Tensor | None, options: LinearNllOptions) -> Tensor:
    """The sum of rows that may cancel, or be many, times the gradients' factor: the last of the
    settings' numbers."""
    factor = options.grad_factor if numbers is None else numbers[-1]
    if rows.device.type == "mps":
        return rows.sum() * factor
    return (rows.sum(dtype=torch.float64) * factor).to(rows.dtype)


class _LinearNllFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mask: Tensor | None,
        weight: Tensor | None,
        numbers: Tensor | None,
        options: LinearNllOptions,
        summed: bool,
        backend: str,
        parts: int,
        *tensors: Any,
    ) -> Tensor:
        target, leaves = tensors[:parts], tensors[parts:]
        need = list(ctx.needs_input_grad[7 + parts :])
        made = need if summed else [False] * len(need)
        rows, *grads = _call(leaves, target, mask, weight, numbers, options, made, backend)
        keep(ctx, (mask, weight, numbers, *tensors), grads)
        ctx.options, ctx.summed, ctx.backend = options, summed, backend
        ctx.parts, ctx.need = parts, need
        return _total(rows, numbers, options) if summed else rows

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        options, summed, backend, need = ctx.options, ctx.summed, ctx.backend, ctx.need
        saved, grads, overwrite = kept(ctx, 3 + ctx.parts + len(need))
        mask, weight, numbers, *rest = saved
        target, leaves = rest[: ctx.parts], rest[ctx.parts :]
        result: list[Tensor | None]
        if by_reference(upstream):

            def formula(*inputs: Tensor | None) -> tuple[Tensor]:
                given = _split(inputs)
                rows = reference.linear_nll(*given, target, mask, weight, options)
                return (rows.sum() * options.grad_factor if summed else rows,)

            result = reference_grads(formula, leaves, need, (upstream,))
        else:
            if not summed:
                each = _per_row(upstream, weight, target)
                _, *grads = _repeated(leaves, target, mask, each, numbers, options, need, backend)
            found = iter(grads)
            result = [
                None
                if t is None or not wanted
                else scaled(next(found), upstream, backend, overwrite, t.dtype)
                if summed
                else next(found).to(t.dtype)
                for t, wanted in zip(leaves, need, strict=True)
            ]
        return (*[None] * (7 + ctx.parts), *result)


def _per_row(upstream: Tensor, weight: Tensor | None, target: Sequence[Tensor]) -> Tensor:
    """The upstream gradients [R] as a weight [R, 1 or V]."""
    each = upstream.unsqueeze(1)
    if weight is None:
        return each
    return each * weight.repeat(len(each) // max(1, len(weight)), 1)


def _repeated(
    leaves: Maybe,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor,
    numbers: Tensor | None,
    options: LinearNllOptions,
    need: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    """As `_call`, with a weight for each row of h, of which several may share a target's row."""
    h = leaves[0]
    assert h is not None
    count = len(target[0]) - (len(target) == 3)
    if count in (0, len(h)):
        return _call(leaves, target, mask, weight, numbers, options, need, backend)
    total: list[Tensor] = []
    of_h: list[Tensor] = []
    for rows, w in zip(h.split(count), weight.split(count), strict=True):
        one = (rows, *leaves[1:])
        loss, *grads = _call(one, target, mask, w, numbers, options, need, backend)
        if need[0]:
            of_h.append(grads.pop(0))
        total = [a + b for a, b in zip(total, grads, strict=True)] if total else grads
    return [loss, *([torch.cat(of_h)] if need[0] else []), *total]


def _split(leaves: Maybe) -> tuple[Tensor, Maybe, Maybe, Tensor | None]:
    """h, the weights, the biases and the scalar."""
    h, *others, scalar = leaves
    assert h is not None
    half = len(others) // 2
    return h, others[:half], others[half:], scalar


def _call(
    leaves: Maybe,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    numbers: Tensor | None,
    options: LinearNllOptions,
    need: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    h, weights, biases, scalar = _split(leaves)
    tensors = (h, [*weights], [*biases], scalar, [*target], mask, weight)
    result: list[Tensor]
    if backend == "reference":
        result = _operator.direct(backend, *tensors, options, need)
    else:
        result = _operator.call(backend, numbers, *tensors, options, [*need])
    return result


def _fake(
    h: Tensor,
    weights: Maybe,
    biases: Maybe,
    scalar: Tensor | None,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: LinearNllOptions,
    need: Sequence[bool],
) -> list[Tensor]:
    wide = torch.promote_types(options.dtype, torch.float32)
    given = (h, *weights, *biases, scalar)
    return [
        h.new_empty(h.shape[0], dtype=wide),
        *(
            t.new_empty(t.shape, dtype=wide)
            for t, wanted in zip(given, need, strict=True)
            if t is not None and wanted
        ),
    ]


_operator = Operator(
    "linear_nll",
    "Tensor h, Tensor?[] weights, Tensor?[] biases, Tensor? learned, Tensor[] target, "
    "Tensor? mask, Tensor? weight",
    LinearNllOptions,
    "Tensor[]",
    _fake,
    also="bool[] need",
    serve=chunked.linear_nll,
)
