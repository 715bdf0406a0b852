"""What the operators' autograd functions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import backends
from .._explain import declined, served
from .._torch import (
    forward_mode,
    keeps_graph,
    saved_tensor_hooks,
    tracing,
    transforms_active,
)
from ._register import PLAIN, direct, lib

lib.define("scale_(Tensor(a!) grad, Tensor upstream, str backend) -> ()")


def _scale(grad: Tensor, upstream: Tensor, backend: str) -> None:
    backends.load(backend, "scale").scale_(grad, upstream)


lib.impl("scale_", _scale, "CompositeExplicitAutograd")
torch.library.register_fake("vaefast::scale_", lambda grad, upstream, backend: None, lib=lib)


def by_reference(*upstream: Tensor | None) -> bool:
    """True where a backward pass is plain PyTorch's: its gradients are to be differentiated again,
    or the upstream gradients are many at once (`is_grads_batched`, a vectorised Jacobian)."""
    if torch.is_grad_enabled():
        return True
    if is_dynamo_compiling():
        return False
    return any(type(t) in PLAIN and not _has_memory(t) for t in upstream if t is not None)


def _has_memory(tensor: Tensor) -> bool:
    """False for one that stands for others, whose address is an error."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def needs_reference(*constants: Tensor | None) -> bool:
    """True where only plain PyTorch is right: under torch.func, in forward mode, under
    torch.jit.trace, or where one of the `constants`, which the kernels take no gradient to, asks
    for one."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in constants):
        declined("constant")
    elif torch.compiler.is_compiling():
        return False
    elif transforms_active():
        declined("transform")
    elif forward_mode():
        declined("forward")
    elif tracing() is not None:
        declined("trace")
    else:
        return False
    return True


def by_plain_pytorch(
    operator: str, backend: str, *constants: Tensor | None, like: Tensor | None = None
) -> bool:
    """True where the reference serves a call: as its backend, or because it `needs_reference`, or
    because there are no elements of `like`."""
    if backend != "reference" and not needs_reference(*constants):
        if like is None or like.numel():
            return False
        declined("empty")
    served(operator, "reference", "reference")
    return True


# A saved tensor's shape, dtype and device, which a kernel takes for what they were: it reads by
# address. None for an absent one.
Kind = tuple[Sequence[int], torch.dtype, torch.device] | None


def kinds_of(tensors: Sequence[Tensor | None]) -> list[Kind]:
    return [None if t is None else (t.shape, t.dtype, t.device) for t in tensors]


def as_saved(saved: Sequence[Any], kinds: Sequence[Kind]) -> Sequence[Any]:
    """What hooks on saved tensors have brought back, in the dtypes that were saved.

    Raises:
        RuntimeError: one is of another shape, or on another device.
    """
    if kinds_of(saved) == kinds:
        return saved
    found: list[Any] = []
    for tensor, kind in zip(saved, kinds, strict=True):
        if tensor is not None and kind is not None:
            shape, dtype, device = kind
            if tensor.shape != shape or tensor.device != device:
                raise RuntimeError(
                    f"a hook on a saved tensor must bring back one of shape {list(shape)} on "
                    f"{device}, as was saved, got {list(tensor.shape)} on {tensor.device}"
                )
            tensor = tensor.to(dtype)
        found.append(tensor)
    return found


def keep(ctx: Any, tensors: Sequence[Tensor | None], made: Sequence[Tensor | None] = ()) -> None:
    """Saves `tensors` for the backward pass, and what the forward pass has `made` for it.

    The latter may be written over, as nobody else can hold it: `ctx` alone does, but where a hook
    sees all that is saved, or a compiler does. It comes back with its strides.
    """
    traced = is_dynamo_compiling()
    hooked = traced or saved_tensor_hooks(True) is not None
    saved = (*tensors, *made) if hooked else tensors
    ctx.save_for_backward(*saved)
    ctx.made = None if hooked else made
    # A compiler's hooks are on what it saves itself.
    ctx.kinds = None if traced else kinds_of(saved)
    ctx.strides = [t if t is None else t.stride() for t in made] if hooked and not traced else None


def kept(
    ctx: Any, count: int, saved: Sequence[Any] | None = None
) -> tuple[Sequence[Any], Sequence[Any], bool]:
    """The `count` tensors of `keep`, what was made, and whether that may be written over. `saved`:
    `ctx.saved_tensors`, where that was asked for before, as a hook may bring each back but once."""
    if saved is None:
        saved = ctx.saved_tensors
    if ctx.kinds is not None and not is_dynamo_compiling():
        saved = as_saved(saved, ctx.kinds)
    made = ctx.made
    if made is None:
        made = saved[count:]
        if ctx.strides is not None and not is_dynamo_compiling():
            made = [_strided(t, s) for t, s in zip(made, ctx.strides, strict=True)]
        return saved[:count], made, False
    if keeps_graph():
        return saved, made, False
    # Freed with the saved tensors, and not held when autograd takes the gradients over.
    ctx.made = ()
    return saved, made, True


def _strided(tensor: Tensor | None, strides: Sequence[int] | None) -> Tensor | None:
    """What was made lies as it was made, whatever a hook did: no kernel asks."""
    if tensor is None or strides is None or tensor.stride() == strides:
        return tensor
    return torch.empty_strided(
        tensor.shape, strides, dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)


def distinct(*args: Any) -> tuple[Any, ...]:
    """Arguments for an autograd function: a compiler takes no tensor twice."""
    if not is_dynamo_compiling():
        return args
    seen: list[Tensor] = []
    found: list[Any] = []
    for value in args:
        if isinstance(value, Tensor):
            for other in seen:
                if value is other:
                    value = value.view_as(value)
                    break
            seen.append(value)
        found.append(value)
    return tuple(found)


def scaled(
    grad: Tensor, upstream: Tensor, backend: str, overwrite: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """`grad * upstream` in `dtype` (grad's own), in `grad`'s memory where it may be."""
    if not overwrite:
        grad = grad * upstream.to(torch.promote_types(grad.dtype, torch.float32))
    elif not direct(grad, upstream):
        torch.ops.vaefast.scale_(grad, upstream, backend)
    # A number in this machine's memory: reading it waits for nothing.
    elif upstream.dim() > 0 or not upstream.is_cpu or upstream.item() != 1.0:
        _scale(grad, upstream, backend)
    return grad.to(dtype or grad.dtype)


def reference_grads(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor | None],
    need: Sequence[bool],
    upstream: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of `function(*inputs)`; where they are asked for, they can be differentiated again.

    The inputs are viewed, so that one input's dependence on another (`scale = f(mu)`) is not
    followed twice.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        views = [t.view_as(t) if t is not None else None for t in inputs]
        outputs = function(*views)
    pairs = [
        (o, g)
        for o, g in zip(outputs, upstream, strict=True)
        if o is not None and g is not None and o.requires_grad
    ]
    wanted = [v for v, n in zip(views, need, strict=True) if n and v is not None]
    if not pairs:
        return [None for _ in inputs]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs],
            wanted,
            [g.to(o.dtype) for o, g in pairs],
            create_graph=again,
            allow_unused=True,
        )
    )
    return [next(found) if n and v is not None else None for v, n in zip(views, need, strict=True)]
