"""The Lightning module around `VAE`, and the callback that keeps a run's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning
import torch
from torch import Tensor

from . import InputError
from .loop import Row
from .models import VAE
from .objectives import held_out_elbo, step_loss
from .run_folder import RunFolder

_COLUMNS = (
    "train_loss",
    "train_nll",
    "train_kl",
    "held_out_loss",
    "held_out_nll",
    "held_out_kl",
)


class LitVAE(lightning.LightningModule):
    """A `VAE` to be trained by a Lightning `Trainer` on batches x `[B, *shape]`.

    The noise of step n follows from (seed, n), so that a resumed run goes on as if it had never
    stopped.

    Args:
        model: the arguments of `VAE`.
        beta: weight of the KL.
        warmup: epochs over which that weight rises linearly from 0.
        lr: of Adam.
        seed: of the noise.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        *,
        beta: float = 1.0,
        warmup: int = 0,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.vae = VAE(**model)
        self.beta, self.warmup, self.lr, self.seed = beta, warmup, lr, seed

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x from its posterior's mean."""
        mu, _ = self.vae.encode(x)
        return self.vae.mean(mu)

    def current_beta(self) -> float:
        """beta at this step, in or after the warm-up."""
        steps = self.warmup * self.trainer.num_training_batches
        return self.beta * min(1.0, (self.global_step + 1) / steps) if steps else self.beta

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """-ELBO at the current beta."""
        seed = self.seed * 2**32 + self.global_step
        out = step_loss(self.vae, batch, beta=self.current_beta(), seed=seed)
        values = {"train_loss": out.loss.detach(), "train_nll": out.nll, "train_kl": out.kl}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch))
        return out.loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        """-ELBO at beta = 1, with the same noise every epoch."""
        out = held_out_elbo(self.vae, batch, samples=1, seed=self.seed + index)
        values = {"held_out_loss": out.loss, "held_out_nll": out.nll, "held_out_kl": out.kl}
        self.log_dict(
            {name: value.float() for name, value in values.items()}, batch_size=len(batch)
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Metrics(lightning.Callback):
    """Appends each epoch to the run's metrics.csv; stops a run whose loss is not finite."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        found = trainer.callback_metrics
        row: Row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {name: found[name].item() for name in _COLUMNS if name in found}
        if not math.isfinite(row.get("train_loss", 0.0)):
            raise InputError(
                f"the loss is {row['train_loss']} in epoch {row['epoch']}: try a lower --lr; the "
                "checkpoint before it is kept"
            )
        # An epoch that Ctrl-C cut short has no held-out values; a resumed run makes its row.
        if all(name in row for name in _COLUMNS):
            self.run.append_metrics(row)
