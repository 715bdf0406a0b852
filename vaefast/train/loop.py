"""The demo's training loop: plain PyTorch, an epoch at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .data import Split
from .models import VAE
from .objectives import autoencoder_loss, held_out_elbo, step_loss

Row = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """How to train; `autoencoder` leaves out the noise and the KL."""

    epochs: int = 100
    batch_size: int = 128
    lr: float = 4e-3
    beta: float = 2.0
    seed: int = 0
    autoencoder: bool = False


def fit(model: VAE, images: Split, settings: Settings) -> Iterator[Row]:
    """Trains `model` in place by Adam on a one-cycle schedule; yields the metrics of each epoch.

    The order of the samples and the noise follow from torch's default generator.
    """
    train = images.train
    steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
    adam = torch.optim.Adam(model.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, settings.lr, total_steps=steps)
    step = 0
    for epoch in range(1, settings.epochs + 1):
        sums = torch.zeros(3, device=train.device)
        for rows in torch.randperm(len(train)).to(train.device).split(settings.batch_size):
            x = train[rows]
            if settings.autoencoder:
                out = autoencoder_loss(model, x)
            else:
                out = step_loss(model, x, beta=settings.beta)
            adam.zero_grad()
            out.loss.backward()
            adam.step()
            schedule.step()
            step += 1
            sums += len(x) * torch.stack([out.loss.detach(), out.nll, out.kl])
        loss, data, kl = (sums / len(train)).tolist()
        after = held_out_elbo(
            model,
            images.held_out,
            samples=1,
            seed=settings.seed,
            autoencoder=settings.autoencoder,
        )
        yield {
            "epoch": epoch,
            "step": step,
            "train_loss": loss,
            "train_nll": data,
            "train_kl": kl,
            "held_out_loss": after.loss.item(),
            "held_out_nll": after.nll.item(),
            "held_out_kl": after.kl.item(),
        }
