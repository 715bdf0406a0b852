"""Checks and canonical forms of the arguments that the public functions share."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _torch

PARAMS = ("logvar", "log_std", "std", "var", "softplus")
REDUCTIONS = ("none", "sample", "batchmean", "sum", "mean")
FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Param = Literal["logvar", "log_std", "std", "var", "softplus"]
Reduction = Literal["none", "sample", "batchmean", "sum", "mean", "dim"]
Clamp = tuple[float, float] | tuple[Literal["soft"], float, float] | Literal["soft"] | None

# NVAE bounds its log-scales with 5 * tanh(x / 5) (Vahdat & Kautz 2020, appendix).
NVAE_SOFT_BOUNDS = (-5.0, 5.0)


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError that lists what exists unless `value` is in `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def float_tensor(name: str, value: object) -> None:
    """Raises TypeError unless `value` is a real floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {value.dtype}")


def number(name: str, value: object) -> float:
    """`value` as a number: an int or float, of Python, numpy or a compiler's tracing, or a
    0-dimensional tensor that asks for no gradient, which is read once (and waits for its device).

    Raises:
        TypeError: it is something else, or a tensor whose gradient would be lost.
    """
    # Not float(value): that would make a constant of what a compiler leaves open.
    if type(value) is float:
        return value
    if isinstance(value, torch.SymFloat):
        return value  # type: ignore[return-value]
    if isinstance(value, torch.SymInt):
        return torch.sym_float(value)  # type: ignore[no-any-return]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Tensor):
        return _read(name, value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"{name} must be a number, got {value!r}")


def _read(name: str, value: Tensor) -> float:
    if value.dim() or value.dtype.is_complex or value.dtype == torch.bool:
        raise TypeError(
            f"{name} must be a number or a 0-dimensional Tensor of one, got {value.dtype} "
            f"{list(value.shape)}"
        )
    dual = forward_ad.unpack_dual(value).tangent is not None
    if dual or (value.requires_grad and torch.is_grad_enabled()):
        raise TypeError(
            f"{name} is a number and gets no gradient, but the Tensor given asks for one; give "
            f"{name}.detach() or a float"
        )
    return float(value.item())


def number_or_tensor(name: str, value: float | Tensor) -> float | Tensor:
    """`value`, where a tensor is differentiated; else as `number`."""
    return value if isinstance(value, Tensor) else number(name, value)


def integer(name: str, value: object, least: int | None = None) -> int:
    """`value` as an int, of Python, numpy, a 0-dimensional tensor or a compiler's tracing.

    Raises:
        TypeError: it is something else.
        ValueError: it is below `least`.
    """
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        found: int = value  # type: ignore[assignment]
    elif isinstance(value, (bool, float)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {value!r}")
    else:
        found = operator.index(value)
    if least is not None and found < least:
        raise ValueError(f"{name} must be at least {least}, got {found}")
    return found


def is_finite(value: float) -> bool:
    """`math.isfinite`, also of a number that a compiler leaves open."""
    return -math.inf < value < math.inf


def same_device(reference: str, tensor: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError naming the first argument that is on another device than `tensor`."""
    for name, other in others.items():
        if other is not None and other.device != tensor.device:
            raise ValueError(
                f"{name} must be on the device of {reference}, {tensor.device}, got {other.device}"
            )


def posterior(mu: Tensor, scale: Tensor) -> Tensor:
    """Checks a posterior's two parameters: floating point, mu `[B, *latent]`, one device.

    Returns:
        `scale`, `expanded` to mu's shape where it broadcasts to it.
    """
    float_tensor("mu", mu)
    float_tensor("scale", scale)
    same = same_shape(mu.shape, scale.shape)
    if not same and not _broadcasts(scale.shape, mu.shape):
        raise ValueError(
            f"mu and scale must have the same shape, got {list(mu.shape)} and "
            f"{list(scale.shape)}; of others scale must broadcast to mu"
        )
    if mu.dim() < 1:
        raise ValueError("mu must have a batch dimension, [B, *latent], got a scalar")
    if mu.device != scale.device:
        raise ValueError(f"mu and scale must be on one device, got {mu.device} and {scale.device}")
    return scale if same else expanded(scale, mu.shape)


def expanded(tensor: Tensor, shape: torch.Size) -> Tensor:
    """`tensor` expanded to `shape`. One in half precision is widened first: its gradient is a sum
    over what it broadcasts to, each term of which would be rounded."""
    return tensor.to(compute_dtype(tensor)).expand(shape)


def clamp_bounds(clamp: Clamp) -> tuple[float, ...]:
    """`()` for none, `(lo, hi)` for a hard clamp, `(lo, hi, 1.0)` for the tanh one."""
    if clamp is None:
        return ()
    if isinstance(clamp, str) and clamp == "soft":
        return (*NVAE_SOFT_BOUNDS, 1.0)
    if isinstance(clamp, (tuple, list)):
        soft = len(clamp) == 3 and isinstance(clamp[0], str) and clamp[0] == "soft"
        bounds = clamp[1:] if soft else clamp
        if len(bounds) == 2 and not isinstance(bounds[0], str) and not isinstance(bounds[1], str):
            low, high = number("clamp", bounds[0]), number("clamp", bounds[1])
            if low < high and not (soft and not (is_finite(low) and is_finite(high))):
                return (low, high, 1.0) if soft else (low, high)
    raise ValueError(
        "clamp must be None, (lo, hi) with lo < hi, 'soft' or ('soft', lo, hi) with finite "
        f"bounds, got {clamp!r}"
    )


def broadcastable(name: str, tensor: Tensor, shape: torch.Size, per_sample: bool = False) -> Tensor:
    """`tensor` viewed so that it broadcasts to `shape` from the right.

    With `per_sample`, a `[B]` tensor is one value per sample: `[B, 1, ..., 1]`, also where the
    last dimension happens to be of size B.
    """
    if per_sample:
        tensor = one_per_sample(tensor, shape)
    if not _broadcasts(tensor.shape, shape):
        raise ValueError(f"{name} must broadcast to {list(shape)}, got {list(tensor.shape)}")
    return tensor


def one_per_sample(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of `[B]` as one value per sample of `shape`, `[B, 1, ..., 1]`; any other itself."""
    if tensor.dim() == 1 and len(shape) > 1 and tensor.shape[0] == shape[0]:
        return tensor.view(-1, *([1] * (len(shape) - 1)))
    return tensor


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """True where a tensor of `shape` expands to `to`."""
    return len(shape) <= len(to) and all(
        size == 1 or size == want for size, want in zip(reversed(shape), reversed(to), strict=False)
    )


def mask_and_weight(
    mask: Tensor | None, weight: Tensor | None, shape: torch.Size, like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Checks `mask` (bool) and `weight` (float) and aligns each to `shape`, `[B, ...]`."""
    if mask is None and weight is None:
        return None, None
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool Tensor, got {got}")
        mask = broadcastable("mask", mask, shape, per_sample=True)
    if weight is not None:
        float_tensor("weight", weight)
        weight = broadcastable("weight", weight, shape, per_sample=True)
    same_device("the parameters", like, mask=mask, weight=weight)
    return mask, weight


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any argument is, else float32: the arithmetic's and the loss's dtype."""
    for t in tensors:
        if t is not None and t.dtype == torch.float64:
            return torch.float64
    return torch.float32


def same_shape(a: Sequence[int], b: Sequence[int]) -> bool:
    """Tuples are compared from the left, whatever their lengths: an exporter would take the batch
    to be no number of samples."""
    return len(a) == len(b) and a == b


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the gradient of a parameter of `dtype` is stored in until the upstream one is known:
    float16 would lose what a loss scaler brings back, and overflow where the mean over the batch
    is finite."""
    return torch.float32 if dtype == torch.float16 else dtype


def count(shape: Sequence[int]) -> int:
    """The number of elements; `torch.Size.numel` makes constants of an exporter's sizes."""
    product = 1
    for size in shape:
        product *= size
    return product


def operand(value: float) -> Any:
    """A number; where a compiler does not know it, a tensor of it: what is computed from that is no
    constant of the graph, which serves any value."""
    if not torch.compiler.is_compiling() or _torch.known(value):
        return value
    return value * torch.ones((), dtype=torch.float64, device="cpu")


def log(value: Any) -> Any:
    """The logarithm of an `operand`."""
    return torch.log(value) if isinstance(value, Tensor) else math.log(value)


def mean(values: Tensor) -> Tensor:
    """The mean in float32 or wider; 0 over no values, where torch's is NaN."""
    wide = values.to(compute_dtype(values))
    return wide.mean() if wide.numel() else wide.sum()


def over_kept(loss: Tensor, total: int, mask: Tensor, shape: torch.Size) -> Tensor:
    """`loss`, a mean over `total` elements, as the mean over those of `shape` that the mask keeps;
    0 where it keeps none."""
    kept = mask.expand(shape).sum()
    return torch.where(kept > 0, loss * total / kept.clamp(min=1), 0.0)


def matrix(tensor: Tensor, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """`tensor` as `[rows, cols]` in `dtype`: itself where it is, as a view of it would be one node
    more in autograd's graph."""
    tensor = tensor.to(dtype)
    return tensor if tensor.shape == (rows, cols) else tensor.reshape(rows, cols)


def grad_needed(*tensors: Tensor | None) -> bool:
    """True where autograd records and any of the tensors asks for a gradient."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False
