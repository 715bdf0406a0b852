"""The registered operator of the elementwise likelihoods, and its autograd function.

The gradient is made in the forward pass, beside the loss: both inputs are read once. Only where
the upstream gradient is per element, or falls on a learned scalar per sample, is it made anew in
the backward pass, with the upstream gradient as the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import compute_dtype, grad_needed
from ..backends._options import Nll
from ..backends.reference import nll as reference
from ._autograd import by_reference, direct, needs_reference, reference_grads, scaled

_lib = torch.library.Library("vaefast", "FRAGMENT")
_lib.define(
    "nll(Tensor[] params, Tensor target, Tensor? mask, Tensor? weight, Tensor? state, "
    "str form, float[] numbers, int scalar, int lead, float uint8_scale, int offset, "
    "str reduce, float factor, float grad_factor, bool[] need, str backend, "
    "Tensor? row_starts=None, Tensor? columns=None) -> Tensor[]"
)


def run(
    params: tuple[Tensor, ...],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    options: Nll,
) -> Tensor:
    """-log p(target | params), reduced as `options` says, by the backend that serves."""
    backend = backends.select_form(target.device.type, options.form)
    plain = backend == "reference" or needs_reference(target, weight)
    sparse: tuple[Tensor, ...] = ()
    if target.layout == torch.sparse_csr:
        if plain or backend != "native" or not target.is_cpu:
            target = target.to_dense()
        else:
            sparse = target.crow_indices().long(), target.col_indices().long()
            target = target.values().contiguous()
    if plain:
        return reference.nll(params, target, mask, weight, state, options)
    if grad_needed(*params):
        loss: Tensor = _NLL.apply(target, mask, weight, state, options, backend, sparse, *params)
        return loss
    need = [False] * len(params)
    return _call(params, target, mask, weight, state, options, need, backend, sparse)[0]


class _NLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        state: Tensor | None,
        options: Nll,
        backend: str,
        sparse: tuple[Tensor, ...],
        *params: Tensor,
    ) -> Tensor:
        need = list(ctx.needs_input_grad[7:])
        # Folding 1/N, and then a loss scaler's 65536, loses a quarter of a float16 gradient.
        for param in params:
            if param.dtype == torch.float16:
                options = options._replace(grad_factor=1.0)
        made = need if options.reduce != "elem" else [False] * len(need)
        loss, *grads = _call(params, target, mask, weight, state, options, made, backend, sparse)
        ctx.save_for_backward(*params, target, mask, weight, state, *grads)
        ctx.sparse = sparse
        ctx.options, ctx.backend, ctx.need = options, backend, need
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        need, options, backend = ctx.need, ctx.options, ctx.backend
        count = len(need)
        saved = ctx.saved_tensors
        params, (target, mask, weight, state) = saved[:count], saved[count : count + 4]
        grads: Sequence[Tensor | None]
        if by_reference(upstream):
            x = densified(target, ctx.sparse, params[0].shape[options.lead :])
            grads = twice_differentiable(params, x, mask, weight, state, options, need, upstream)
        elif options.reduce == "elem":
            grads = _recomputed(
                params, target, mask, weight, state, options, upstream, need, backend, ctx.sparse
            )
        else:
            made = iter(saved[count + 4 :])
            if mask is not None and options.reduce == "sample" and options.scalar >= 0:
                shape = params[0].shape[options.lead - 1 :]
                kept = mask.expand(shape).reshape(shape[0], -1).any(1)
                upstream = torch.where(kept, upstream, 0.0)
            grads = [
                times_upstream(next(made), index, params[index], upstream, options, backend)
                if need[index]
                else None
                for index in range(count)
            ]
            if mask is not None and options.reduce == "sample":
                # A stored 0 times a sample's infinite gradient is no number.
                grads = [
                    g if g is None or index == options.scalar else torch.where(mask, g, 0.0)
                    for index, g in enumerate(grads)
                ]
        return (None,) * 7 + tuple(grads)


def twice_differentiable(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    options: Nll,
    need: Sequence[bool],
    upstream: Tensor,
) -> list[Tensor | None]:
    """The gradients by way of the reference."""
    return reference_grads(
        lambda *p: (reference.nll(p, target, mask, weight, state, options),),
        params,
        need,
        (upstream,),
    )


def times_upstream(
    grad: Tensor, index: int, param: Tensor, upstream: Tensor, options: Nll, backend: str
) -> Tensor:
    """A stored gradient, times what the forward pass could not know."""
    left = options.factor / options.grad_factor if options.factor else 0.0
    if index == options.scalar:
        return (grad * upstream).sum().mul(left).to(param.dtype)
    if options.reduce == "sample":
        upstream = upstream.view(*upstream.shape, *([1] * (grad.dim() - upstream.dim())))
    return scaled(grad, upstream, left, backend)


def _recomputed(
    params: tuple[Tensor, ...],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    options: Nll,
    upstream: Tensor,
    need: list[bool],
    backend: str,
    sparse: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients for a per-element upstream gradient, which weighs the sum they are of."""
    weight = upstream if weight is None else upstream * weight
    options = options._replace(reduce="sum", factor=1.0, grad_factor=1.0)
    _, *grads = _call(params, target, mask, weight, state, options, need, backend, sparse)
    found = iter(grads)
    result: list[Tensor | None] = []
    for index, wanted in enumerate(need):
        grad = next(found) if wanted else None
        if grad is not None and index == options.scalar:
            grad = grad.sum().to(params[index].dtype)
        result.append(grad)
    return result


def _call(
    params: Sequence[Tensor],
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    state: Tensor | None,
    options: Nll,
    need: Sequence[bool],
    backend: str,
    sparse: Sequence[Tensor],
) -> list[Tensor]:
    result: list[Tensor]
    if direct(*params, target, mask, weight, state):
        module = backends.load(backend, "nll")
        also = (sparse,) if sparse else ()
        result = module.nll(tuple(params), target, mask, weight, state, options, need, *also)
    else:
        result = torch.ops.vaefast.nll(
            list(params), target, mask, weight, state, *options, list(need), backend, *sparse
        )
    return result


def densified(values: Tensor, sparse: Sequence[Tensor], row: Sequence[int]) -> Tensor:
    """The target itself, or, where it is the values of a CSR matrix, that as a dense one."""
    if not sparse:
        return values
    starts, columns = sparse
    shape = (len(starts) - 1, *row)
    whole = torch.sparse_csr_tensor(
        starts, columns, values, shape, device=values.device, check_invariants=False
    )
    return whole.to_dense()


def _forward(*args: Any) -> list[Tensor]:
    # The dispatcher leaves out an argument that has its default value.
    params, target, mask, weight, state, *settings = args[: 5 + len(Nll._fields)]
    need, backend, *also = args[5 + len(Nll._fields) :]
    settings[1] = tuple(settings[1])
    module = backends.load(backend, "nll")
    result: list[Tensor] = module.nll(
        tuple(params), target, mask, weight, state, Nll(*settings), need, *([also] if also else [])
    )
    return result


def _forward_fake(*args: Any) -> list[Tensor]:
    params, target, _, _, _, *settings = args[: 5 + len(Nll._fields)]
    need, options = args[5 + len(Nll._fields)], Nll(*settings)
    return [
        target.new_empty(loss_shape(params[0].shape, options), dtype=compute_dtype(*params)),
        *(
            torch.empty_like(p, memory_format=torch.contiguous_format)
            if index != options.scalar
            else p.new_empty(params[0].shape[: options.lead], dtype=compute_dtype(*params))
            for index, (p, wanted) in enumerate(zip(params, need, strict=True))
            if wanted
        ),
    ]


def loss_shape(shape: Sequence[int], options: Nll) -> tuple[int, ...]:
    """Shape of the loss for parameters of `shape`."""
    if options.reduce == "elem":
        return tuple(shape)
    return tuple(shape[: options.lead]) if options.reduce == "sample" else ()


_lib.impl("nll", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("vaefast::nll", _forward_fake, lib=_lib)
