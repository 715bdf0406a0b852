"""A Lightning module around a model and its objective, for a `Trainer` of your own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from torch import Tensor

from .objectives import Loss, Step
from .trained import PARTS, Batch, Trained, gradient_norm


class LitVAE(lightning.LightningModule):
    """A model to be trained by a Lightning `Trainer` on batches x `[B, *shape]`, with its callbacks
    and loggers; `vaefast train` trains the same by a quicker loop (`vaefast.train.fit`).

    Logs `train_loss`, `held_out_loss` and their parts, in nats per sample. The noise of step n
    follows from (seed, n). A step whose gradient is not finite changes nothing, and is counted in
    `skipped`.

    Args:
        model: the arguments of `vaefast.train.models.build`.
        objective: those of `vaefast.train.objectives.build`; None: the ELBO.
        warmup: epochs over which the KL's weight (or its capacity) rises linearly from 0.
        lr: of Adam.
        seed: of the noise.
        dataset_size: how many samples there are to train on, which beta-TCVAE needs.

    Example:
        >>> import lightning, torch
        >>> module = LitVAE({"name": "vae", "shape": [1, 8, 8], "latent": 4})
        >>> module(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        objective: Mapping[str, Any] | None = None,
        *,
        warmup: int = 0,
        lr: float = 1e-3,
        seed: int = 0,
        dataset_size: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.trained = Trained(model, objective)
        self.warmup, self.lr, self.seed = warmup, lr, seed
        self.dataset_size = dataset_size
        self.skipped = 0

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x from its posterior's mean."""
        return self.trained.vae.reconstruct(x)

    def training_step(self, x: Tensor, index: int) -> Tensor:
        """The objective's loss."""
        steps = self.warmup * self.trainer.num_training_batches
        step = Step(
            seed=self.seed * 2**32 + self.global_step,
            # Other processes have other rows, and other noise.
            offset=self.global_rank * len(x),
            warm=min(1.0, (self.global_step + 1) / steps) if steps else 1.0,
            dataset_size=self.dataset_size,
        )
        out = self.trained(Batch(x), step)
        self._log("train", out, len(x))
        loss: Tensor = out.loss
        return loss

    def validation_step(self, x: Tensor, index: int) -> None:
        """The objective's held-out loss, with the same noise every epoch."""
        step = Step(seed=(self.seed + index) * 2**32, offset=self.global_rank * len(x))
        self._log("held_out", self.trained(Batch(x), step, held_out=True), len(x))

    def _log(self, kind: str, out: Loss, count: int) -> None:
        values = {f"{kind}_{name}": value.detach() for name, value in zip(PARTS, out, strict=True)}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=count)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes the gradient away where it is not finite: optimisers pass such parameters by."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if gradients and not gradient_norm(gradients)[1]:
            self.skipped += 1
            for parameter in self.parameters():
                parameter.grad = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)
