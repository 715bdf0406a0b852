"""The whole loss as one operator, and one training step of the MLP that uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

import vaefast as vf

from .case import (
    COMPILED,
    EAGER,
    FUSED,
    STEP,
    Call,
    Inputs,
    OpCase,
    Shape,
    fused_backends,
    leaf,
)

LATENT = 20


def textbook(mu: Tensor, logvar: Tensor, logits: Tensor, x: Tensor) -> tuple[Tensor]:
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return ((nll + kl) / x.shape[0],)


def fused(mu: Tensor, logvar: Tensor, logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (vf.elbo_loss(logits, x, mu, logvar, likelihood="bernoulli").loss,)


def inputs(shape: Shape, device: torch.device) -> Inputs:
    mu, logvar = (torch.randn(shape[0], LATENT, device=device) for _ in range(2))
    logits, x = torch.randn(shape, device=device), torch.rand(shape, device=device)
    return Inputs((leaf(mu), leaf(0.5 * logvar), leaf(logits)), (x,), (None,))


class MLP(nn.Module):
    """784-400-20-400-784, Kingma & Welling's MNIST model as PyTorch's examples have it.

    Its forward pass gives the loss, by the operators of a subclass.
    """

    def __init__(self, data: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(data, hidden), nn.ReLU())
        self.to_mu, self.to_logvar = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, data))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return self.to_mu(h), self.to_logvar(h)


class EagerMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.encode(x)
        std = torch.exp(0.5 * logvar)
        logits = self.decoder(mu + std * torch.randn_like(std))
        return textbook(mu, logvar, logits, x)[0]


class DistributionsMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.encode(x)
        posterior = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
        prior = Normal(mu.new_zeros(()), mu.new_ones(()), validate_args=False)
        decoded = Bernoulli(logits=self.decoder(posterior.rsample()), validate_args=False)
        kl = kl_divergence(posterior, prior).sum()
        return (kl - decoded.log_prob(x).sum()) / x.shape[0]


class FusedMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        z, kl = vf.sample_kl(*self.encode(x))
        return vf.elbo_loss(self.decoder(z), x, kl=kl, likelihood="bernoulli").loss


class StepInputs(NamedTuple):
    x: Tensor
    state: dict[str, Any]


@dataclass(frozen=True)
class StepCase:
    """One training step: forward, backward, Adam. Every implementation has its own model."""

    shape: Shape = (128, 784)
    hidden: int = 400
    latent: int = LATENT
    targets: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({"eager": 1.25}))

    op = "elbo_loss"
    passes = (STEP,)
    # Adam keeps its step count on the host.
    capturable = False

    @property
    def name(self) -> str:
        batch, data = self.shape
        return f"training step MLP {data}-{self.hidden}-{self.latent} batch {batch}"

    def small(self) -> StepCase:
        return replace(self, shape=(5, 16), hidden=8, latent=2)

    def make(self, device: torch.device) -> StepInputs:
        model = MLP(self.shape[1], self.hidden, self.latent).to(device)
        return StepInputs(torch.rand(self.shape, device=device), model.state_dict())

    def implementations(self, device: torch.device) -> tuple[str, ...]:
        return (EAGER, "distributions", COMPILED, *fused_backends(device))

    def call(
        self, implementation: str, what: str, inputs: StepInputs, compiler: str = "inductor"
    ) -> Call:
        x, state = inputs
        kinds = {"distributions": DistributionsMLP, EAGER: EagerMLP, COMPILED: EagerMLP}
        is_fused = implementation.startswith(FUSED)
        kind = FusedMLP if is_fused else kinds[implementation]
        model = kind(self.shape[1], self.hidden, self.latent).to(x.device)
        model.load_state_dict(state)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        forward: Callable[[Tensor], Tensor] = model
        if implementation == COMPILED:
            forward = torch.compile(model, backend=compiler)

        def step() -> Tensor:
            optimizer.zero_grad()
            loss = forward(x)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Call(step, implementation.removeprefix(FUSED) if is_fused else "reference")

    def elements(self, inputs: StepInputs) -> int:
        return inputs.x.numel()

    def moved(self, what: str, inputs: StepInputs) -> None:
        return None

    def allowed(self, what: str, inputs: StepInputs) -> None:
        return None

    def check(self, inputs: StepInputs, device: torch.device) -> None:
        # The noise differs, and so does the loss, by its spread at one batch's mean.
        losses = {}
        for name in self.implementations(device):
            if name != COMPILED:
                run, backend = self.call(name, STEP, inputs)
                with vf.backend(backend):
                    losses[name] = float(run())
        for name, loss in losses.items():
            assert abs(loss / losses[EAGER] - 1) < 0.1, f"{self.name}, {name}: {losses}"


def cases() -> list[OpCase | StepCase]:
    return [
        OpCase("elbo_loss", (128, 784), inputs, {"eager": textbook}, fused, variant="bernoulli"),
        StepCase(),
    ]


def test_elbo_loss(measure: Callable[[], None]) -> None:
    measure()
