"""What the operators' autograd functions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .. import backends

_lib = torch.library.Library("vaefast", "FRAGMENT")
_lib.define("scale_(Tensor(a!) grad, Tensor upstream, float factor, str backend) -> ()")


def _scale(grad: Tensor, upstream: Tensor, factor: float, backend: str) -> None:
    backends.load(backend, "scale").scale_(grad, upstream, factor)


_lib.impl("scale_", _scale, "CompositeExplicitAutograd")
torch.library.register_fake(
    "vaefast::scale_", lambda grad, upstream, factor, backend: None, lib=_lib
)

# Private, so it may go; without it every backward is out of place, which is always right.
keeps_graph: Callable[[], bool] = getattr(
    torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True
)


PLAIN = (Tensor, torch.nn.Parameter)


def direct(*tensors: Tensor | None) -> bool:
    """True where a kernel may be called past torch's dispatcher, which costs some 10 us a call.

    Not under a mode or a tracer that must see the operator, for a subclass with a dispatcher of
    its own, or for a tensor whose memory holds other numbers than it shows (a negated view), or
    is not there (a zero tensor, a batch that vmap shows one by one).
    """
    if is_dynamo_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    try:
        # A plain loop: a generator in all() takes twice the time.
        for t in tensors:
            if t is not None and (
                type(t) not in PLAIN or t.is_neg() or (not t.data_ptr() and t._is_zerotensor())
            ):
                return False
    except RuntimeError:
        return False
    return True


def by_reference(*upstream: Tensor | None) -> bool:
    """True where a backward pass is plain PyTorch's: its gradients are to be differentiated again,
    or the upstream gradients are many at once (`is_grads_batched`, a vectorised Jacobian)."""
    if torch.is_grad_enabled():
        return True
    if is_dynamo_compiling() or torch._C._len_torch_dispatch_stack():
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
    """True where only plain PyTorch is right: under torch.func, in forward mode, or where one
    of the `constants`, which the kernels take no gradient to, asks for one."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in constants):
        return True
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def scaled(grad: Tensor, upstream: Tensor, factor: float, backend: str) -> Tensor:
    """`grad * upstream * factor`, in `grad`'s own memory where nobody can see the difference.

    In place only where this backward is the last one of its graph: under `retain_graph` a second
    backward would scale twice, and a compiled graph may reuse the buffer.
    """
    if torch.compiler.is_compiling() or keeps_graph():
        wide = upstream.to(torch.promote_types(grad.dtype, torch.float32)) * factor
        return (grad * wide).to(grad.dtype)
    if direct(grad, upstream):
        # A number in this machine's memory: reading it waits for nothing.
        if upstream.dim() == 0 and upstream.is_cpu and upstream.item() * factor == 1.0:
            return grad
        _scale(grad, upstream, factor, backend)
    else:
        torch.ops.vaefast.scale_(grad, upstream, factor, backend)
    return grad


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
