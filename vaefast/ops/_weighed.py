"""DReG's weights on the gradient that passes through z, for one loss and its backward passes alone.

Where z was used before there is a loss, its gradient can be weighed only where it has been summed,
at z. So the loss is the value with a node behind it, whose backward, the first to run, hooks z for
the rest of that pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from .. import random
from .._torch import at_end_of_backward, backward_pass

# Where a node of autograd keeps the hook of the pass that runs: see `_hook`.
_KEY = "vaefast.dreg"


class _Hooked(NamedTuple):
    """The pass and the log weights that a hook is for. Of the latter the identity: z's node must
    not hold a node that holds it."""

    task: int
    source: tuple[int, int]
    handle: RemovableHandle


def weighing_z(value: Tensor, log_w: Tensor, z: Tensor, weights: Tensor) -> Tensor:
    """`value`, made of `log_w`; in its backward passes the gradient in z `[K, B, *latent]` is
    multiplied by `weights` `[K, B]`."""
    if not (torch.is_grad_enabled() and z.requires_grad and value.requires_grad):
        return value
    if is_dynamo_compiling() or random.transformed():
        # z is of the function that is compiled or transformed, and its hook ends with it.
        wide = _wide(weights, z)
        z.register_hook(lambda grad: (grad * wide).to(grad.dtype))
        return value
    edge = get_gradient_edge(log_w)
    result: Tensor = _WeighingZ.apply(value, z, weights, edge)
    return result


class _WeighingZ(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, z: Tensor, weights: Tensor, edge: Any) -> Tensor:
        ctx.save_for_backward(z, weights)
        ctx.edge = edge
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        z, weights = ctx.saved_tensors
        _hook(z, weights, (id(ctx.edge.node), ctx.edge.output_nr))
        return upstream, None, None, None


def _hook(z: Tensor, weights: Tensor, source: tuple[int, int]) -> None:
    """Multiplies the gradient in z by `weights` in the backward pass that runs."""
    task = backward_pass()
    node, output = get_gradient_edge(z)[:2]
    # What torch declares as a method is a dictionary.
    kept = cast(dict[str, _Hooked], node.metadata)
    key = f"{_KEY}.{output}"
    before = kept.get(key)
    if before is not None and before.task == task:
        if before.source != source:
            raise RuntimeError(
                "two losses with bound='dreg' and log weights of their own reach one z in one "
                "backward pass; call backward for each"
            )
        return
    wide = _wide(weights, z)

    def weigh(grad: Tensor) -> Tensor | None:
        # One that an error left behind is of an earlier pass.
        return (grad * wide).to(grad.dtype) if backward_pass() == task else None

    def end() -> None:
        handle.remove()
        kept.pop(key, None)

    if before is not None:
        before.handle.remove()
    handle = z.register_hook(weigh)
    kept[key] = _Hooked(task, source, handle)
    at_end_of_backward(end)


def _wide(weights: Tensor, z: Tensor) -> Tensor:
    return weights.view(*weights.shape, *([1] * (z.dim() - 2)))
