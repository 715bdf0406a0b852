"""Time of a training step with fused and with eager operators, side by side."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..likelihoods import as_tuple
from ..ops.elbo_loss import elbo_loss
from ..ops.sample_kl import sample_kl
from .models import VAE
from .objectives import HAS_EAGER, eager_loss, eager_nll, eager_sample_kl, step_loss


class Timing(NamedTuple):
    """Median seconds of one call, fused and eager."""

    fused: float
    eager: float


def compare(model: VAE, x: Tensor, *, beta: float = 1.0, rounds: int = 100) -> dict[str, Timing]:
    """Medians of `rounds` interleaved calls: `"step"` is forward, backward and Adam; `"loss"` is
    sampling, KL and likelihood alone, forward and backward.

    It works on copies of the model, and leaves torch's random state as it was. `{}` for a
    likelihood that has no eager formula here.
    """
    if model.head.name not in HAS_EAGER:
        return {}
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        return {
            "step": interleaved(*_steps(model, x, beta), x.device, rounds),
            "loss": interleaved(*_losses(model, x, beta), x.device, rounds),
        }


def _steps(model: VAE, x: Tensor, beta: float) -> tuple[Callable[[], None], Callable[[], None]]:
    def stepper(loss: Callable[[VAE], Tensor]) -> Callable[[], None]:
        own = copy.deepcopy(model)
        adam = torch.optim.Adam(own.parameters(), lr=1e-3)

        def step() -> None:
            adam.zero_grad()
            loss(own).backward()
            adam.step()

        return step

    return (
        stepper(lambda m: step_loss(m, x, beta=beta).loss),
        stepper(lambda m: eager_loss(m, x, beta=beta)),
    )


def _losses(model: VAE, x: Tensor, beta: float) -> tuple[Callable[[], None], Callable[[], None]]:
    with torch.no_grad():
        mu, logvar = model.encode(x)
        params = as_tuple(model.decode(mu))[0]
    leaves = [t.clone().requires_grad_() for t in (mu, logvar, params)]
    mu, logvar, params = leaves

    def backward(z: Tensor, loss: Tensor) -> None:
        # A decoder would send a gradient to z: here it is one of ones.
        torch.autograd.grad((loss, z), leaves, (torch.ones_like(loss), torch.ones_like(z)))

    def fused() -> None:
        z, kl = sample_kl(mu, logvar)
        likelihood = model.likelihood()
        backward(z, elbo_loss(params, x, kl=kl, likelihood=likelihood, beta=beta).loss)

    def eager() -> None:
        z, kl = eager_sample_kl(mu, logvar)
        backward(z, (eager_nll(params, x, model.likelihood()) + beta * kl).mean())

    return fused, eager


def interleaved(
    fused: Callable[[], None],
    eager: Callable[[], None],
    device: torch.device,
    rounds: int,
    *,
    seconds: float = math.inf,
) -> Timing:
    """Medians of `rounds` calls of each in turn, or of those that fit into so many seconds, three
    at least."""
    taken: tuple[list[float], list[float]] = ([], [])
    warm_up = max(3, rounds // 10)
    end = time.perf_counter() + seconds
    for index in range(warm_up + rounds):
        # Whichever goes first finds other caches: they take turns.
        for which in (0, 1) if index % 2 else (1, 0):
            _wait(device)
            start = time.perf_counter()
            (fused, eager)[which]()
            _wait(device)
            if index >= warm_up:
                taken[which].append(time.perf_counter() - start)
        if index >= warm_up + 2 and time.perf_counter() > end:
            break
    return Timing(*(statistics.median(s) for s in taken))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
