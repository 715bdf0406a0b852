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
from ..backends import linear_nll as chunked
from ..backends._options import LinearNll
from ..backends.linear_nll import Maybe
from ..backends.reference import linear_nll as reference
from ._autograd import by_reference, direct, needs_reference, reference_grads, scaled

_lib = torch.library.Library("vaefast", "FRAGMENT")
_lib.define(
    "linear_nll(Tensor h, Tensor?[] weights, Tensor?[] biases, Tensor? scalar, Tensor[] target, "
    "Tensor? mask, Tensor? weight, str form, float[] numbers, bool by_row, int scalar_index, "
    "float uint8_scale, str[] links, ScalarType dtype, int rows, float grad_factor, bool[] need, "
    "str backend) -> Tensor[]"
)


def run(
    h: Tensor,
    weights: Maybe,
    biases: Maybe,
    scalar: Tensor | None,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: LinearNll,
    factor: float | None,
) -> Tensor:
    """The loss of each row, or `factor` times their sum."""
    backend = backends.select_form(h.device, options.form)
    compiling = torch.compiler.is_compiling()
    if needs_reference(weight, *target) or (compiling and backend == "reference"):
        rows = reference.linear_nll(h, weights, biases, scalar, target, mask, weight, options)
        return rows if factor is None else rows.sum() * factor
    leaves = (h, *weights, *biases, scalar)
    if grad_needed(*leaves):
        loss: Tensor = _LinearNLL.apply(
            mask, weight, options, factor, backend, len(target), len(weights), *target, *leaves
        )
        return loss
    rows = _call(leaves, target, mask, weight, options, [False] * len(leaves), backend)[0]
    return rows if factor is None else _total(rows, factor)


def _total(rows: Tensor, factor: float) -> Tensor:
    """The sum of rows that may cancel, or be many."""
    if rows.device.type == "mps":
        return rows.sum() * factor
    return (rows.sum(dtype=torch.float64) * factor).to(rows.dtype)


class _LinearNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mask: Tensor | None,
        weight: Tensor | None,
        options: LinearNll,
        factor: float | None,
        backend: str,
        parts: int,
        heads: int,
        *tensors: Any,
    ) -> Tensor:
        target, leaves = tensors[:parts], tensors[parts:]
        need = list(ctx.needs_input_grad[7 + parts :])
        # Folding 1/N, and then a loss scaler's 65536, loses a quarter of a float16 gradient.
        folded = 1.0 if factor is None or options.dtype == torch.float16 else factor
        made = need if factor is not None else [False] * len(need)
        options = options._replace(grad_factor=folded)
        rows, *grads = _call(leaves, target, mask, weight, options, made, backend)
        ctx.save_for_backward(mask, weight, *tensors, *grads)
        ctx.options, ctx.factor, ctx.backend = options, factor, backend
        ctx.parts, ctx.heads, ctx.need = parts, heads, need
        return rows if factor is None else _total(rows, factor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        options, factor, backend, need = ctx.options, ctx.factor, ctx.backend, ctx.need
        mask, weight, *rest = ctx.saved_tensors
        target, rest = rest[: ctx.parts], rest[ctx.parts :]
        leaves, grads = rest[: len(need)], rest[len(need) :]
        result: list[Tensor | None]
        if by_reference(upstream):

            def formula(*inputs: Tensor | None) -> tuple[Tensor]:
                given = _split(inputs)
                rows = reference.linear_nll(*given, target, mask, weight, options)
                return (rows if factor is None else rows.sum() * factor,)

            result = reference_grads(formula, leaves, need, (upstream,))
        else:
            left = 1.0
            if factor is None:
                each = _per_row(upstream, weight, target)
                _, *grads = _repeated(leaves, target, mask, each, options, need, backend)
            else:
                left = factor / options.grad_factor if factor else 0.0
            found = iter(grads)
            result = [
                _cast(next(found), t, upstream if factor is not None else None, left, backend)
                if t is not None and wanted
                else None
                for t, wanted in zip(leaves, need, strict=True)
            ]
        return (*[None] * (7 + ctx.parts), *result)


def _cast(grad: Tensor, like: Tensor, upstream: Tensor | None, left: float, backend: str) -> Tensor:
    if upstream is not None:
        grad = scaled(grad, upstream, left, backend)
    return grad.to(like.dtype)


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
    options: LinearNll,
    need: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    """As `_call`, with a weight for each row of h, of which several may share a target's row."""
    h = leaves[0]
    assert h is not None
    count = len(target[0]) - (len(target) == 3)
    if count in (0, len(h)):
        return _call(leaves, target, mask, weight, options, need, backend)
    total: list[Tensor] = []
    of_h: list[Tensor] = []
    for rows, w in zip(h.split(count), weight.split(count), strict=True):
        loss, *grads = _call((rows, *leaves[1:]), target, mask, w, options, need, backend)
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
    options: LinearNll,
    need: Sequence[bool],
    backend: str,
) -> list[Tensor]:
    h, weights, biases, scalar = _split(leaves)
    if backend == "reference" or direct(*leaves, *target, mask, weight):
        return chunked.linear_nll(
            h, weights, biases, scalar, target, mask, weight, options, need, backend
        )
    settings: list[Any] = [*options._replace(links=[*options.links])]  # type: ignore[arg-type]
    operator: Any = torch.ops.vaefast.linear_nll
    result: list[Tensor] = operator(
        h,
        list(weights),
        list(biases),
        scalar,
        list(target),
        mask,
        weight,
        *settings,
        list(need),
        backend,
    )
    return result


def _forward(*args: Any) -> list[Tensor]:
    *tensors, form, numbers, by_row, scalar, scale, links, dtype, rows, factor, need, backend = args
    options = LinearNll(
        form, tuple(numbers), by_row, scalar, scale, tuple(links), dtype, rows, factor
    )
    h, weights, biases, own, target, mask, weight = tensors
    return chunked.linear_nll(h, weights, biases, own, target, mask, weight, options, need, backend)


def _forward_fake(h: Tensor, weights: Any, biases: Any, scalar: Any, *args: Any) -> list[Tensor]:
    dtype, _rows, _factor, need, _backend = args[-5:]
    wide = torch.promote_types(dtype, torch.float32)
    given = (h, *weights, *biases, scalar)
    return [
        h.new_empty(len(h), dtype=wide),
        *(
            t.new_empty(t.shape, dtype=wide)
            for t, wanted in zip(given, need, strict=True)
            if t is not None and wanted
        ),
    ]


_lib.impl("linear_nll", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("vaefast::linear_nll", _forward_fake, lib=_lib)
