"""Times of the operators beside a digit's small step, each against what one writes without them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..likelihoods import ZeroInflatedNegativeBinomial
from ..ops.mixture_log_prob import mixture_log_prob
from ..ops.nll import nll
from ..ops.tc_terms import tc_terms
from .timing import Timing, interleaved

_LOG_2PI = math.log(2 * math.pi)


class Case(NamedTuple):
    """A loss of its own, as the library has it and as it is usually written, and its leaves."""

    title: str
    fused: Callable[[], Tensor]
    eager: Callable[[], Tensor]
    leaves: list[Tensor]


def time_operators(device: torch.device, *, seconds: float = 5.0) -> dict[str, Timing]:
    """Medians of interleaved calls, forward and backward, in about so many seconds for all."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(0)
        made = [case(device) for case in (_tc, _zinb, _mixture)]
        return {
            case.title: interleaved(
                _backward(case.fused, case.leaves),
                _backward(case.eager, case.leaves),
                device,
                100,
                seconds=seconds / len(made),
            )
            for case in made
        }


def _backward(loss: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], None]:
    def call() -> None:
        torch.autograd.grad(loss(), leaves)

    return call


def _leaves(device: torch.device, count: int, *shape: int) -> list[Tensor]:
    return [torch.randn(shape, device=device).requires_grad_() for _ in range(count)]


def _tc(device: torch.device) -> Case:
    z, mu, logvar = leaves = _leaves(device, 3, 256, 10)
    size = 60_000

    def fused() -> Tensor:
        terms = tc_terms(z, mu, logvar, dataset_size=size, method="mws")
        return (terms.mi + 6 * terms.tc + terms.dim_kl).mean()

    def eager() -> Tensor:
        apart = (z[:, None] - mu) ** 2 * torch.exp(-logvar)
        pairs = -0.5 * (apart + logvar + _LOG_2PI)
        log_n = math.log(size * len(z))
        joint = torch.logsumexp(pairs.sum(2), 1) - log_n
        each = (torch.logsumexp(pairs, 1) - log_n).sum(1)
        own = -0.5 * ((z - mu) ** 2 * torch.exp(-logvar) + logvar + _LOG_2PI).sum(1)
        prior = -0.5 * (z**2 + _LOG_2PI).sum(1)
        return (own - joint + 6 * (joint - each) + each - prior).mean()

    return Case("beta-TC terms, 256 x 10", fused, eager, leaves)


def _zinb(device: torch.device) -> Case:
    leaves = _leaves(device, 3, 128, 2000)
    x = torch.poisson(torch.rand(128, 2000, device=device) * 3)
    likelihood = ZeroInflatedNegativeBinomial()

    def fused() -> Tensor:
        a, b, dropout = leaves
        return nll((a.exp(), b.exp(), dropout), x, likelihood)

    def eager() -> Tensor:
        a, b, dropout = leaves
        mu, theta = a.exp(), b.exp()
        log_total = torch.log(mu + theta)
        none = theta * (torch.log(theta) - log_total)
        some = none + x * (torch.log(mu) - log_total)
        some = some + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        kept = F.logsigmoid(-dropout)
        lost = torch.logaddexp(F.logsigmoid(dropout), kept + none)
        return -torch.where(x == 0, lost, kept + some).sum(1).mean()

    return Case("ZINB likelihood, 128 x 2000 counts", fused, eager, leaves)


def _mixture(device: torch.device) -> Case:
    z, mu, logvar = leaves = [
        *_leaves(device, 1, 256, 16),
        *_leaves(device, 2, 500, 16),
    ]

    def fused() -> Tensor:
        return mixture_log_prob(z, mu, logvar).mean()

    def eager() -> Tensor:
        apart = (z[:, None] - mu) ** 2 * torch.exp(-logvar)
        pairs = -0.5 * (apart + logvar + _LOG_2PI).sum(2)
        return (torch.logsumexp(pairs, 1) - math.log(len(mu))).mean()

    return Case("mixture prior, 256 x 500 x 16", fused, eager, leaves)
