"""Formulas of real values around a location."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._exact import decayed, log_of, whitened
from ._base import location_formula


@location_formula
def gaussian_fixed(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """(x - m)^2 / (2 s^2) + constant; numbers: (1 / (2 s^2), constant)."""
    half_precision, constant = numbers
    distance = x - params[0]
    # In this order no product overflows that the result does not.
    return distance * (distance * half_precision) + constant


@location_formula
def gaussian_scalar(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """(x - m)^2 / (2 s^2) + log s + constant with a learned scalar s; numbers: (constant,)."""
    mean, std = params
    return ((x - mean) / std) ** 2 * 0.5 + torch.log(std) + numbers[0]


@location_formula
def gaussian(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """((x - m)^2 e^-v + v) / 2 + constant; numbers: (constant,)."""
    mean, logvar = params
    return 0.5 * (whitened(x - mean, logvar).square() + logvar) + numbers[0]


@location_formula
def laplace_fixed(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """|x - m| / b + constant; numbers: (1 / b, constant)."""
    inverse, constant = numbers
    return (x - params[0]).abs() * inverse + constant


@location_formula
def laplace_scalar(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """|x - m| / b + log b + constant with a learned scalar b; numbers: (constant,)."""
    loc, scale = params
    return (x - loc).abs() / scale + torch.log(scale) + numbers[0]


@location_formula
def laplace(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """|x - m| e^-s + s + constant; numbers: (constant,)."""
    loc, log_scale = params
    distance = x - loc
    # By the distance's own sign: scaled it may underflow.
    return decayed(distance, log_scale) * torch.sign(distance) + log_scale + numbers[0]


@location_formula
def log_cosh_fixed(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """log cosh((x - m) / b) + constant; numbers: (1 / b, constant)."""
    inverse, constant = numbers
    return _log_cosh((x - params[0]) * inverse) + constant


@location_formula
def log_cosh(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """log cosh((x - m) e^-s) + s + constant; numbers: (constant,)."""
    loc, log_scale = params
    return _log_cosh(decayed(x - loc, log_scale)) + log_scale + numbers[0]


@location_formula
def student_t_fixed(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """h log(1 + r^2) + constant, r = (x - m) n; numbers: (n = 1 / (b sqrt(df)), h, constant)."""
    inverse, half, constant = numbers
    log_scale = params[0].new_zeros(())
    return half * _log1p_square(x - params[0], log_scale, inverse) + constant


@location_formula
def student_t(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """h log(1 + r^2) + s + constant, r = (x - m) e^-s n; numbers: (n = df^-1/2, h, constant)."""
    loc, log_scale = params
    root, half, constant = numbers
    return half * _log1p_square(x - loc, log_scale, root) + log_scale + constant


def _log_cosh(d: Tensor) -> Tensor:
    """log1p(2 sinh(d/2)^2) near 0, where it does not cancel; |d| + softplus(-2 |d|) - log 2."""
    near = d.abs() < 1
    half = torch.sinh(0.5 * torch.where(near, d, 0.0))
    size = torch.where(near, 1.0, d).abs()
    far = size + F.softplus(-2 * size, threshold=100) - math.log(2)
    return torch.where(near, torch.log1p(2 * half * half), far)


def _log1p_square(distance: Tensor, log_scale: Tensor, root: float) -> Tensor:
    """log(1 + r^2), r = d e^-s root, also where r or its square overflows."""
    far = decayed(distance.detach(), log_scale.detach()).abs() * root > 1e15
    r = decayed(torch.where(far, 0.0, distance), log_scale) * root
    log_size = torch.log(torch.where(far, distance, 1.0).abs()) - log_scale
    log_size = log_size + log_of(root, distance)
    return torch.where(far, 2 * log_size, torch.log1p(r * r))
