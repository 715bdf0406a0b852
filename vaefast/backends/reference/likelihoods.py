"""The formula of every likelihood: its negative log-likelihood per element, in nats.

A formula takes the target, the tuple of parameters and the likelihood's numbers, all in the
compute dtype, and is differentiable in the parameters. Its name is the likelihood's form; the
C++ functor and the Triton twin of that name compute the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Formula = Callable[[Tensor, tuple[Tensor, ...], tuple[float, ...]], Tensor]
FORMULAS: dict[str, Formula] = {}


def formula(function: Formula) -> Formula:
    """Registers `function` under its own name."""
    FORMULAS[function.__name__] = function
    return function


@formula
def bernoulli(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """softplus(l) - x l, in a form that keeps the tails: log1p(e^-|l|) + |l| [(l > 0) - x]_l."""
    (logits,) = params
    tail = F.softplus(-logits.abs(), threshold=100)
    return tail + torch.where(logits > 0, (1 - x) * logits, -x * logits)


@formula
def bernoulli_probs(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """-x log p - (1 - x) log(1 - p), each logarithm at least -100, as torch's."""
    (probs,) = params
    bad = torch.isnan(probs)
    inside = torch.where(bad, 0.5, probs).clamp(0.0, 1.0)
    # Linear in x, so taken at 0 and 1: torch's function refuses a target that is NaN.
    yes = F.binary_cross_entropy(inside, torch.ones_like(inside), reduction="none")
    no = F.binary_cross_entropy(inside, torch.zeros_like(inside), reduction="none")
    return torch.where(bad, probs, x * yes + (1 - x) * no)


@formula
def gaussian_fixed(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """(x - m)^2 / (2 s^2) + constant; numbers: (1 / (2 s^2), constant)."""
    half_precision, constant = numbers
    return (x - params[0]) ** 2 * half_precision + constant


@formula
def gaussian_scalar(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """(x - m)^2 / (2 s^2) + log s + constant with a learned scalar s; numbers: (constant,)."""
    mean, std = params
    return ((x - mean) / std) ** 2 * 0.5 + torch.log(std) + numbers[0]


@formula
def gaussian(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """((x - m)^2 e^-v + v) / 2 + constant; numbers: (constant,)."""
    mean, logvar = params
    return 0.5 * ((x - mean) ** 2 * torch.exp(-logvar) + logvar) + numbers[0]


@formula
def laplace_fixed(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """|x - m| / b + constant; numbers: (1 / b, constant)."""
    inverse, constant = numbers
    return (x - params[0]).abs() * inverse + constant


@formula
def laplace_scalar(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """|x - m| / b + log b + constant with a learned scalar b; numbers: (constant,)."""
    loc, scale = params
    return (x - loc).abs() / scale + torch.log(scale) + numbers[0]


@formula
def laplace(x: Tensor, params: tuple[Tensor, ...], numbers: tuple[float, ...]) -> Tensor:
    """|x - m| e^-s + s + constant; numbers: (constant,)."""
    loc, log_scale = params
    return (x - loc).abs() * torch.exp(-log_scale) + log_scale + numbers[0]
