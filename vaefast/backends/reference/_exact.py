"""What formulas are made of where plain operators would have a wrong derivative or overflow."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..._torch import known


def clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """`x` cut off at closed bounds: its derivative is 1 on and between them, and 0 outside.

    `torch.clamp` and `torch.maximum` differ at the bound itself between versions and overloads.
    NaN stays.
    """
    if low is not None:
        low = left_open(low, x)
        x = torch.where(x < low, low, x)
    if high is None:
        return x
    high = left_open(high, x)
    return torch.where(x > high, high, x)


def left_open(bound: float, like: Tensor) -> Any:
    """`bound`, as a tensor where a compiler does not know it: of a number that is taken by more
    than a sum or a product it would make a constant, and compile anew for every value."""
    if not torch.compiler.is_compiling() or known(bound):
        return bound
    return torch.ones((), dtype=like.dtype, device="cpu") * bound


def log_of(number: float, like: Tensor) -> Any:
    """log of a number, as a tensor where a compiler does not know it (`left_open`)."""
    if not torch.compiler.is_compiling() or known(number):
        return math.log(number)
    return torch.log(torch.ones((), dtype=like.dtype, device="cpu") * number)


def tanh(x: Tensor) -> Tensor:
    """tanh x, whose derivatives are right where they are small too.

    torch makes them of 1 - tanh(x)^2, which keeps no digit from |x| = 9 on in float32; those of
    sigmoid(-2 |x|), half of what tanh lacks of 1, are products.
    """
    near, lack = _saturation(x)
    return torch.where(near, torch.tanh(torch.where(near, x, 0.0)), torch.sign(x) * (1 - 2 * lack))


def soft_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """m + h tanh((x - m) / h), m the middle of the bounds and h half their distance.

    Away from the middle it is made of the distance to the nearer bound: right also where that is 0.
    """
    low, high = left_open(low, x), left_open(high, x)
    middle, half = (high + low) / 2, (high - low) / 2
    u = (x - middle) / half
    near, lack = _saturation(u)
    inside = middle + half * torch.tanh(torch.where(near, u, 0.0))
    away = (high - low) * lack
    return torch.where(near, inside, torch.where(u < 0, low + away, high - away))


def _saturation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whether |x| < 1/2, and elsewhere (1 - |tanh x|) / 2."""
    near = x.abs() < 0.5
    return near, torch.sigmoid(-2 * torch.where(near, 1.0, x).abs())


def decayed(x: Tensor, log_scale: Tensor, *, finite: bool = False) -> Tensor:
    """x e^-s, where e^-s alone may overflow: an exact 0 stays 0, and a small x is scaled right.

    e^-s is applied as two equal factors, both finite, outside the graph. What carries the
    derivatives in s is a factor e^(s' - s) of value 1, s' being s itself, so that autograd
    multiplies the result, and no factor, by what it needs: right to any order. With `finite` the
    result is cut off at a quarter of the largest number, so that twice it, which the derivative of
    its square has, is one too.
    """
    fixed = log_scale.detach()
    largest = torch.finfo(fixed.dtype).max
    root = torch.exp((-0.5 * fixed).clamp(max=math.log(largest) - 0.01))
    change = torch.where(fixed.isinf(), 0.0, log_scale - fixed)
    result = x * root * root
    if finite:
        result = clamp(result, -0.25 * largest, 0.25 * largest)
    return result * torch.exp(-change)


def whitened(distance: Tensor, log_variance: Tensor, *, finite: bool = False) -> Tensor:
    """d / sigma: its square is d^2 e^-logvar wherever that is finite."""
    return decayed(distance, 0.5 * log_variance, finite=finite)


def difference_of_squares(a: Tensor, b: Tensor) -> Tensor:
    """a^2 - b^2 for finite a and b, also where both squares overflow and are about the same."""
    top = math.sqrt(torch.finfo(a.dtype).max)
    large = (a.detach().abs() > top) | (b.detach().abs() > top)
    wide_a, wide_b = torch.where(large, a, 0.0), torch.where(large, b, 0.0)
    # Elsewhere the product would give a's gradient an error of b's size.
    product = (wide_a - wide_b) * (0.5 * wide_a + 0.5 * wide_b)
    return torch.where(large, 0.0, a).square() - torch.where(large, 0.0, b).square() + 2 * product


def logsumexp(x: Tensor, dim: int) -> Tensor:
    """log sum e^x over `dim`, whose derivatives add up to 1 however far x lies from 0.

    torch makes them of x less the result, which is rounded as a number of that size: in float32
    at 1e7 four derivatives add up to 1.6, at 1e8 to 4. Here the result is near 0.
    """
    if not x.shape[dim]:
        return torch.logsumexp(x, dim)
    # Nothing but weights of 0, or an infinite one, is left as it is.
    top = torch.nan_to_num(x.detach().amax(dim, keepdim=True), 0.0, 0.0, 0.0)
    return torch.logsumexp(x - top, dim) + top.squeeze(dim)
