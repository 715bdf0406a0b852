"""The registered operator of the maximum mean discrepancy, and its autograd function.

The gradient is made in the forward pass, where a pair's distance is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._args import grad_needed
from ..backends._options import Mmd
from ..backends.reference import mmd as reference
from ._autograd import by_reference, direct, needs_reference, reference_grads, scaled

_lib = torch.library.Library("vaefast", "FRAGMENT")
_lib.define(
    "mmd(Tensor x, Tensor y, bool rbf, float[] scales, bool unbiased, bool[] need, str backend) "
    "-> Tensor[]"
)


def run(x: Tensor, y: Tensor, options: Mmd) -> Tensor:
    """The squared discrepancy of x `[N, D]` and y `[M, D]`, both of one dtype."""
    backend = backends.select(x.device)
    if backend == "reference" or needs_reference() or not x.numel():
        return reference.mmd(x, y, options)
    if grad_needed(x, y):
        value: Tensor = _MMD.apply(x, y, options, backend)
        return value
    return _call(x, y, options, [False, False], backend)[0]


class _MMD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, options: Mmd, backend: str) -> Tensor:
        ctx.need = list(ctx.needs_input_grad[:2])
        value, *grads = _call(x, y, options, ctx.need, backend)
        ctx.save_for_backward(x, y, *grads)
        ctx.options, ctx.backend = options, backend
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, y, *made = ctx.saved_tensors
        if by_reference(upstream):
            grads = reference_grads(
                lambda x, y: (reference.mmd(x, y, ctx.options),), (x, y), ctx.need, (upstream,)
            )
            return (*grads, None, None)
        found = iter(made)
        grads = [scaled(next(found), upstream, 1.0, ctx.backend) if n else None for n in ctx.need]
        return (*grads, None, None)


def _call(x: Tensor, y: Tensor, options: Mmd, need: list[bool], backend: str) -> list[Tensor]:
    result: list[Tensor]
    if direct(x, y):
        result = backends.load(backend, "mmd").mmd(x, y, options, need)
    else:
        result = torch.ops.vaefast.mmd(x, y, *options, need, backend)
    return result


def _forward(
    x: Tensor,
    y: Tensor,
    rbf: bool,
    scales: Sequence[float],
    unbiased: bool,
    need: list[bool],
    backend: str,
) -> list[Tensor]:
    result: list[Tensor] = backends.load(backend, "mmd").mmd(
        x, y, Mmd(rbf, tuple(scales), unbiased), need
    )
    return result


def _forward_fake(x: Tensor, y: Tensor, *settings: Any) -> list[Tensor]:
    need = settings[3]
    grads = [t.new_empty(t.shape) for t, n in zip((x, y), need, strict=True) if n]
    return [x.new_empty(()), *grads]


_lib.impl("mmd", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("vaefast::mmd", _forward_fake, lib=_lib)
