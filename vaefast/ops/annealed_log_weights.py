"""Log weights of log p(x) by annealed importance sampling, for a posterior that fits badly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import _args, random
from .._args import Clamp, Param
from ..backends.reference.sample_kl import standard_deviation
from .rsample import transform_of

# Of the sigmoid schedule: from -4 to 4.
_REACH = 4.0


class AnnealedWeights(NamedTuple):
    """`log_weights` `[K, B]`, and the share of moves that were accepted, `acceptance` `[B]`."""

    log_weights: Tensor
    acceptance: Tensor


Weigh = Callable[[Tensor], Tensor]


@overload
def annealed_log_weights(
    weigh: Weigh,
    mu: Tensor,
    scale: Tensor,
    num_samples: int,
    *,
    steps: int = 100,
    leapfrog: int = 10,
    step_size: float = 0.2,
    schedule: str | Tensor = "sigmoid",
    return_acceptance: Literal[False] = False,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    seed: random.Seed | None = None,
    generator: random.Generator | None = None,
) -> Tensor: ...


@overload
def annealed_log_weights(
    weigh: Weigh,
    mu: Tensor,
    scale: Tensor,
    num_samples: int,
    *,
    steps: int = 100,
    leapfrog: int = 10,
    step_size: float = 0.2,
    schedule: str | Tensor = "sigmoid",
    return_acceptance: Literal[True],
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    seed: random.Seed | None = None,
    generator: random.Generator | None = None,
) -> AnnealedWeights: ...


@torch.no_grad()
def annealed_log_weights(
    weigh: Weigh,
    mu: Tensor,
    scale: Tensor,
    num_samples: int,
    *,
    steps: int = 100,
    leapfrog: int = 10,
    step_size: float = 0.2,
    schedule: str | Tensor = "sigmoid",
    return_acceptance: bool = False,
    param: Param = "logvar",
    min_std: float = 0.0,
    clamp: Clamp = None,
    seed: random.Seed | None = None,
    generator: random.Generator | None = None,
) -> Tensor | AnnealedWeights:
    """Log weights whose mean is p(x), by annealed importance sampling from q(z|x), in nats.

    With w(z) = p(x, z) / q(z|x) and 0 = b_0 < ... < b_T = 1, a chain starts at z_0 ~ q and moves
    through the densities q(z|x) w(z)^b_t, each left invariant by a Hamiltonian Monte Carlo move:
    `log w = sum_t (b_t - b_{t-1}) log w(z_{t-1})`. One step is plain importance sampling.

    Args:
        weigh: from z `[K, B, *latent]` to log w(z) `[K, B]`, as `log_weights` gives them; it must
            be differentiable in z.
        mu, scale: of q(z|x), `[B, *latent]`; scale may broadcast to that.
        num_samples: K, how many chains.
        steps: T.
        leapfrog: leapfrog steps of a move, each of which costs a gradient of `weigh`.
        step_size: their length, in standard deviations of q. Right where `acceptance` is around
            0.65 (Neal 2011); it is not adapted, as that would make the weights' mean wrong.
        schedule: b_t: `"sigmoid"`, of -4 to 4 as in Wu et al., `"linear"`, or a tensor
            `[steps + 1]` that rises from 0 to 1.
        return_acceptance: return `AnnealedWeights`.
        param, min_std, clamp: of scale, as in `rsample`.
        seed, generator: of every draw, as in `rsample`. In a function for `log_marginal` leave
            both out: chunks of one seed would be the same samples again.

    Returns:
        `[K, B]`, float32, or float64 if mu or scale is, without a gradient; or `AnnealedWeights`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: shapes, devices or settings do not fit together.

    Example:
        >>> import torch, vaefast as vf
        >>> mu, logvar, x = torch.zeros(8, 2), torch.zeros(8, 2), torch.ones(8, 10)
        >>> def weigh(z):
        ...     logits = z.sum(-1, keepdim=True).expand(*z.shape[:2], 10)
        ...     return vf.log_weights(logits, x, z, mu, logvar, likelihood="bernoulli")
        >>> vf.annealed_log_weights(weigh, mu, logvar, 5, steps=10, seed=0).shape
        torch.Size([5, 8])

    Source: Neal 2001, "Annealed Importance Sampling"; Wu, Burda, Salakhutdinov & Grosse 2017, "On
    the Quantitative Analysis of Decoder-Based Generative Models", from the encoder's q(z|x).
    """
    scale = _args.posterior(mu, scale)
    for name, value in (("num_samples", num_samples), ("steps", steps), ("leapfrog", leapfrog)):
        _args.integer(name, value, least=1)
    step_size = _args.number("step_size", step_size)
    if not step_size > 0:
        raise ValueError(f"step_size must be positive, got {step_size}")
    dtype = _args.compute_dtype(mu, scale)
    std = standard_deviation(scale.to(dtype), transform_of(param, min_std, clamp))
    betas = _betas(schedule, steps, mu.device)
    state = random.make_state(mu, mu.shape[0], seed, generator)
    chain = _Chain(weigh, mu, std, num_samples)
    shape = (mu.shape[0], num_samples, *mu.shape[1:])
    # What a move draws of a stream, which is the batch's or a sample's.
    count = num_samples * mu.numel() // (1 if state.dim() == 1 else max(mu.shape[0], 1))

    u = random.normal(shape, state, dtype=dtype).transpose(0, 1)
    log_w, slope = chain.weigh(u)
    total = betas[1] * log_w
    accepted = torch.zeros_like(log_w)
    for t in range(1, steps):
        momentum = random.normal(
            shape, state, dtype=dtype, purpose=random.LIKELIHOOD, offset=t * count
        )
        chance = random.uniform(
            shape[:2], state, dtype=dtype, purpose=random.BINARIZE, offset=t * count
        )
        here = (u, log_w, slope)
        u, log_w, slope, moved = chain.move(
            here, momentum.transpose(0, 1), chance.t(), betas[t], step_size, leapfrog
        )
        accepted += moved
        total = total + (betas[t + 1] - betas[t]) * log_w
    if not return_acceptance:
        return total
    # With one step there is no move that could be rejected.
    return AnnealedWeights(total, accepted.mean(0) / (steps - 1) if steps > 1 else accepted[0] + 1)


Point = tuple[Tensor, Tensor, Tensor]


class _Chain:
    """Moves in u = (z - mu) / std, where q is a standard normal."""

    def __init__(self, weigh: Weigh, mu: Tensor, std: Tensor, samples: int) -> None:
        self.function, self.mu, self.std = weigh, mu, std
        self.shape = (samples, mu.shape[0])

    def weigh(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log w, and its gradient in u."""
        with torch.enable_grad():
            z = (self.mu + self.std * u).to(self.mu.dtype).requires_grad_()
            log_w = self.function(z)
            if not isinstance(log_w, Tensor) or log_w.shape != self.shape:
                got = list(log_w.shape) if isinstance(log_w, Tensor) else type(log_w).__name__
                raise ValueError(f"weigh must give log weights {list(self.shape)}, got {got}")
            (slope,) = torch.autograd.grad(log_w.sum(), z)
        return log_w.detach().to(u.dtype), slope.to(u.dtype) * self.std

    def move(
        self,
        here: Point,
        momentum: Tensor,
        chance: Tensor,
        beta: Tensor,
        step_size: float,
        leapfrog: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A Hamiltonian move of the density exp(-u^2/2) w^beta: where it ends, and which moved."""
        u, log_w, slope = here
        before = _energy(u, log_w, momentum, beta)
        for _ in range(leapfrog):
            momentum = momentum + 0.5 * step_size * (beta * slope - u)
            u = u + step_size * momentum
            log_w, slope = self.weigh(u)
            momentum = momentum + 0.5 * step_size * (beta * slope - u)
        # NaN, where the path left what numbers can hold, is a refusal.
        moved = torch.log(chance) < before - _energy(u, log_w, momentum, beta)
        wide = moved.view(*moved.shape, *[1] * (u.dim() - 2))
        return (
            torch.where(wide, u, here[0]),
            torch.where(moved, log_w, here[1]),
            torch.where(wide, slope, here[2]),
            moved,
        )


def _energy(u: Tensor, log_w: Tensor, momentum: Tensor, beta: Tensor) -> Tensor:
    # The last dimension is for latents of none.
    squares = (u.square() + momentum.square()).unsqueeze(-1).flatten(2)
    return 0.5 * squares.sum(-1) - beta * log_w


def _betas(schedule: str | Tensor, steps: int, device: torch.device) -> Tensor:
    """b_0 to b_T in float64."""
    if isinstance(schedule, Tensor):
        betas = schedule.to(torch.float64)
        rises = betas.shape == (steps + 1,) and bool((betas.diff() >= 0).all())
        if not rises or float(betas[0]) != 0.0 or float(betas[-1]) != 1.0:
            raise ValueError(
                f"schedule as a Tensor must rise from 0 to 1 in {steps + 1} numbers, got "
                f"{list(schedule.shape)}"
            )
        return betas.to(device)
    _args.one_of("schedule", schedule, ("sigmoid", "linear"))
    at = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=device)
    if schedule == "sigmoid":
        curve = torch.sigmoid(_REACH * (2 * at - 1))
        at = (curve - curve[0]) / (curve[-1] - curve[0])
    return at
