"""The ELBO by a likelihood's plan: nll + beta mean(kl) and its gradients, one autograd function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch import apply_of
from . import _nll_backward
from ._autograd import kept
from ._plans import recording


def run_found(
    plan: Any, params: tuple[Tensor, ...], target: Tensor, kl: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, nll, kl) by a plan of the nll that was found: means over the batch, the last two
    detached."""
    if recording():
        found: tuple[Tensor, Tensor, Tensor] = _apply(plan, beta, target, kl, *params)
        return found
    return _of(plan.forward(params, target, (), ())[0], kl, beta)


def _of(nll: Tensor, kl: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = kl.mean()
    return torch.add(nll, mean, alpha=beta), nll, mean


class _ElboLossFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: Any, beta: float, target: Tensor, kl: Tensor, *params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll, grads = plan.forward(params, target, (), ctx.needs_input_grad[4:])
        found = _of(nll, kl, beta)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*found[1:])
        # What `keep` does: whoever found a plan has asked for hooks.
        ctx.save_for_backward(target, *params)
        ctx.made, ctx.kinds = grads, plan.kinds
        ctx.plan, ctx.beta, ctx.shape, ctx.dtypes = plan, beta, kl.shape, (nll.dtype, kl.dtype)
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> Any:
        need = ctx.needs_input_grad
        if upstream is None:
            return (None,) * len(need)
        grad_kl = None
        if need[3]:
            # As torch.add has it: no launch for a 1.
            grad_kl = upstream if ctx.beta == 1 else upstream * ctx.beta
            if ctx.dtypes[1] != upstream.dtype:
                grad_kl = grad_kl.to(ctx.dtypes[1])
            grad_kl = (grad_kl / ctx.shape.numel()).expand(ctx.shape)
        if True not in need[4:]:
            return (None, None, None, grad_kl, *(None,) * (len(need) - 4))
        if ctx.dtypes[0] != upstream.dtype:
            upstream = upstream.to(ctx.dtypes[0])
        taken = _nll_backward.as_made(ctx, ctx.plan, upstream)
        if taken is not None:
            return None, None, None, grad_kl, *taken
        (target, *params), made, overwrite = kept(ctx, len(need) - 3)
        found = _nll_backward.gradients(
            ctx.plan, params, target, (), need[4:], False, upstream, made, overwrite
        )
        return (None, None, None, grad_kl, *found[1:])


_apply = apply_of(_ElboLossFunction)
