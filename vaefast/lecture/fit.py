"""The lecture's training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def fit(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    validate: Callable[[], Tensor],
    data: Tensor,
    *,
    epochs: int,
    seed: int,
    batch_size: int = 128,
    lr: float = 2e-3,
) -> None:
    """Trains `model` in place by Adam on a one-cycle schedule, and leaves it as it was where
    `validate` was least: the digits are few, and every model here learns them by heart in time.

    torch's generator is as it was before; order and noise follow from `seed`.
    """
    best, kept = float("inf"), copy.deepcopy(model.state_dict())
    every = max(1, epochs // 40)
    adam = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    steps = epochs * -(-len(data) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, lr, total_steps=steps)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for epoch in range(1, epochs + 1):
            for rows in torch.randperm(len(data)).split(batch_size):
                adam.zero_grad()
                loss(data[rows]).backward()
                adam.step()
                schedule.step()
            if epoch % every == 0:
                with torch.no_grad():
                    value = float(validate())
                if value < best:
                    best, kept = value, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    model.eval().requires_grad_(False)
