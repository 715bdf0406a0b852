"""The private names of torch that the library uses.

Each may go with any release: what stands in for it then is right, if slower. Everything else asks
torch by its public names only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _private(path: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """The function at `path` below `torch._C`, or `otherwise`."""
    found: Any = torch._C
    for name in path.split("."):
        found = getattr(found, name, None)
    return cast(Callable[..., Any], otherwise if found is None else found)


# How many modes of __torch_dispatch__ are active; one more than are: an operator called by way of
# the dispatcher is right under any.
dispatch_modes: Callable[[], int] = _private("_len_torch_dispatch_stack", lambda: 1)

# Whether a transform of torch.func is active; plain PyTorch is right under any.
transforms_active: Callable[[], bool] = _private("_are_functorch_transforms_active", lambda: True)

# Whether torch.jit.trace is recording: a value, or None.
tracing: Callable[[], Any] = _private(
    "_get_tracing_state",
    lambda: torch.jit.is_tracing() or None,  # type: ignore[attr-defined]
)

# Whether the backward pass that is running keeps its graph; where it does, nothing that was stored
# is written over.
keeps_graph: Callable[[], bool] = _private(
    "_autograd._get_current_graph_task_keep_graph", lambda: True
)

# The hooks that see what autograd saves here and now, if any: what they have been shown is
# not written over.
saved_tensor_hooks: Callable[[bool], Any] = _private(
    "_autograd._top_saved_tensors_default_hooks", lambda ignore_is_tracing: True
)

# How many hold a storage: (address) -> number. Without it none is known to be free.
storage_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)

# The address of a GPU's current stream: torch.cuda's way goes through an object, 1 us more.
raw_stream: Callable[[int], int] = _private(
    "_cuda_getCurrentRawStream", lambda device: torch.cuda.current_stream(device).cuda_stream
)


# A number for the backward pass that runs here and now; without it passes are told apart by what
# `at_end_of_backward` has taken away.
backward_pass: Callable[[], int] = _private("_current_graph_task_id", lambda: 0)


def at_end_of_backward(function: Callable[[], None]) -> None:
    """Calls `function` when the backward pass that runs is over."""
    engine = getattr(torch.autograd.Variable, "_execution_engine", None)
    if engine is None:
        raise RuntimeError(
            f"torch {torch.__version__} says no more when a backward pass ends, which bound='dreg' "
            "needs; take another bound"
        )
    engine.queue_callback(function)


def _forward_level() -> bool:
    return forward_ad._current_level >= 0


# Whether forward-mode differentiation is on; plain PyTorch is right where that is not known.
forward_mode: Callable[[], bool] = (
    _forward_level if hasattr(forward_ad, "_current_level") else lambda: True
)


def is_zero_tensor(tensor: Tensor) -> bool:
    """True for a tensor of zeros that has no memory; asked of tensors without an address, which
    empty ones are too."""
    asked = getattr(tensor, "_is_zerotensor", None)
    return tensor.numel() > 0 if asked is None else bool(asked())


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` without what it and its node do in Python first, some 4 us: unwrapping the
    tensors that a transform of torch.func has left behind, for which the caller has to look, and
    finding `backward`."""
    node = getattr(function, "_backward_cls", None)
    if node is None:
        plain: Callable[..., Any] = function.apply
        return plain
    node.apply = function.backward
    return cast(Callable[..., Any], super(torch.autograd.Function, function).apply)  # type: ignore[misc]


# What a compiled graph asks of its tensors before it runs, in C++: of each it costs what two of
# Python's questions to it do.
_guards: Callable[..., Any] = _private(
    "_dynamo.guards.TensorGuards", lambda *tensors, **static: None
)

Look = Callable[..., bool]


def _looks_like_none(*tensors: object) -> bool:
    return False


def _guard_of(*tensors: Tensor) -> Look:
    sizes, strides = ([[*of(t)] for t in tensors] for of in (Tensor.size, Tensor.stride))
    try:
        made = _guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    except TypeError:
        return _looks_like_none
    return _looks_like_none if made is None else cast(Look, made.check)


@functools.cache
def _guards_tell_apart() -> bool:
    """Whether guards do what `look_of` says, by this torch."""
    plain = torch.zeros(2, 3, dtype=torch.float32, device="cpu")
    turned, column = plain.new_zeros(3, 2), plain.new_zeros(2, 1)
    others = (
        *(plain[:1], plain[:, :2], plain[0], plain[None], turned, turned.t(), column.expand(2, 3)),
        *(plain.double(), plain.bool(), plain.to("meta"), torch._neg_view(plain)),
        *(plain.new_zeros(2, 3, requires_grad=True), torch.nn.Parameter(plain)),
    )
    same = _guard_of(plain, plain)
    return same(plain, plain + 1) and not any(
        same(a, b) for t in others for a, b in ((t, plain), (plain, t))
    )


def look_of(*tensors: Tensor) -> Look:
    """Whether as many tensors, given one by one, look like these: each of the same class, dtype,
    device, shape and strides, asking for a gradient or not, and to torch's dispatcher, here and
    now, the same: a negated view, a zero tensor, one that a transform or `torch.jit.trace` follows
    does not look like a plain one. Where that cannot be told, none does."""
    return _guard_of(*tensors) if _guards_tell_apart() else _looks_like_none


def has_autocast(device: str) -> bool:
    """Whether a kind of device has autocast."""
    return torch.amp.is_autocast_available(device)


# torch 2.11's compiler cannot trace the question, 2.13's can. By this mark it takes the answer for
# a constant; torch.compiler.assume_constant_result, which sets it, imports the compiler for that.
has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def known(value: object) -> bool:
    """True where a compiler knows a number: it is the same at every call of the graph."""
    if isinstance(value, Tensor):
        return False
    asked = getattr(torch.fx.experimental.symbolic_shapes, "has_static_value", None)
    return asked is not None and bool(asked(value))


# What torch.amp scales gradients by, which looks at every value on its way.
_unscale: Callable[..., Any] | None = getattr(
    torch, "_amp_foreach_non_finite_check_and_unscale_", None
)


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether every value of floating tensors of one device and dtype is finite."""
    if _unscale is None or not tensors:
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    device = tensors[0].device
    found, one = torch.zeros((), device=device), torch.ones((), device=device)
    _unscale(tensors, found, one)
    return not found.item()
