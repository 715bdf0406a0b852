"""What plans are made of: a call of the core made ready but for its tensors, for operands of one
shape, strides and dtype each. A plan holds no operand and next to no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layout import Place
from ._pack import DTYPES, KEPT, Packed, fresh

# An operand as a plan knows it: its shape, strides and dtype; None for an absent one.
Operand = tuple[Sequence[int], tuple[int, ...], torch.dtype] | None

# A result of at most so many elements is made like another, which the plan holds: 0.4 us less than
# from its shape.
LIKE = 1 << 10

# What makes a result, given one of the operands.
Room = Callable[[Tensor], Tensor]


def is_on_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def operand_of(tensor: Tensor | None) -> Operand:
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)


def kind(operand: Operand, device: torch.device) -> tuple[Any, ...] | None:
    """What a saved operand must come back as: its shape, dtype and device."""
    return None if operand is None else (operand[0], operand[2], device)


def packed(operand: Operand, place: Place | None, divisor: float = 1.0) -> Packed | None:
    """An operand for the core, without its address."""
    if operand is None or place is None:
        return None
    return (0, DTYPES[operand[2]], *place[:4], divisor)


def room(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, like: Operand = None
) -> Room:
    """What makes an unwritten dense result, given a tensor such as `like`: where that is one such
    as the result, by torch's quickest way."""
    shape = tuple(shape)
    if device.type == "cpu" and math.prod(shape) * dtype.itemsize >= KEPT:
        return lambda _: fresh(shape, dtype, device)
    if like is not None and (tuple(like[0]), like[2]) == (shape, dtype) and is_dense(like):
        return torch.empty_like
    return lambda _: torch.empty(shape, dtype=dtype, device=device)


def is_dense(operand: Operand) -> bool:
    """As `Tensor.is_contiguous`: the stride of a dimension of one element does not matter."""
    if operand is None:
        return False
    shape, strides, _ = operand
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return 0 in shape
        step *= max(size, 1)
    return True
