"""The Lightning module around a model and its objective, and what keeps a run's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor

from . import InputError, models, objectives
from .loop import Row
from .objectives import Step
from .run_folder import RunFolder

_PARTS = ("loss", "nll", "kl")
_COLUMNS = tuple(f"{kind}_{part}" for kind in ("train", "held_out") for part in _PARTS)


class Batch(NamedTuple):
    """Samples x `[B, *shape]`: the rows from `start` on of the `whole` that all processes share."""

    x: Tensor
    start: int
    whole: int


class LitVAE(lightning.LightningModule):
    """A model to be trained by a Lightning `Trainer` on batches x `[B, *shape]`.

    The noise of step n follows from (seed, n), so that a resumed run goes on as if it had never
    stopped. Where several processes share a batch (`Batch`), each has its part of one stream, and
    their gradient is that of the whole batch.

    A step whose gradient is not finite changes nothing, and is counted in `skipped`.

    Args:
        model: the arguments of `vaefast.train.models.build`.
        objective: those of `vaefast.train.objectives.build`; None: the ELBO.
        warmup: epochs over which the KL's weight (or its capacity) rises linearly from 0.
        lr: of Adam.
        seed: of the noise.
        dataset_size: how many samples there are to train on, which beta-TCVAE needs.
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
        self.vae = models.build(**model)
        self.objective = objectives.build(**(objective or {}))
        self.objective.check(self.vae)
        self.warmup, self.lr, self.seed = warmup, lr, seed
        self.dataset_size = dataset_size
        self.skipped = 0
        self._sums = {kind: torch.zeros(4, dtype=torch.float64) for kind in ("train", "held_out")}

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x from its posterior's mean."""
        return self.vae.reconstruct(x)

    def warm(self) -> float:
        """From 0 to 1 during the warm-up, 1 after it."""
        steps = self.warmup * self.trainer.num_training_batches
        return min(1.0, (self.global_step + 1) / steps) if steps else 1.0

    def training_step(self, batch: Tensor | Batch, index: int) -> Tensor:
        """The objective's loss on this process's part of the batch, whose mean over the processes
        is that of the whole."""
        x, start, whole = batch if isinstance(batch, Batch) else Batch(batch, 0, len(batch))
        world = self.trainer.world_size
        step = Step(
            seed=self.seed * 2**32 + self.global_step,
            offset=start,
            warm=self.warm(),
            dataset_size=self.dataset_size,
            gather=world > 1 and whole % world == 0,
        )
        out = self.objective(self.vae, x, step)
        self._add("train", out, len(x))
        return out.loss if world == 1 else out.loss * (len(x) * world / whole)

    def validation_step(self, batch: Tensor | Batch, index: int) -> None:
        """The objective's held-out loss, with the same noise every epoch."""
        x, start, _ = batch if isinstance(batch, Batch) else Batch(batch, 0, len(batch))
        step = Step(seed=(self.seed + index) * 2**32, offset=start)
        self._add("held_out", self.objective.held_out(self.vae, x, step), len(x))

    def _add(self, kind: str, out: objectives.Loss, count: int) -> None:
        # Lightning's own meters cost as much as a small model's step.
        values = torch.stack([part.detach().double() for part in out])
        values = torch.cat([values * count, values.new_full((1,), count)])
        sums = self._sums[kind].to(values.device)
        # A step that is skipped is no part of the mean; held-out values are shown as they are.
        finite = torch.isfinite(values).all() | (kind != "train")
        self._sums[kind] = torch.where(finite, sums + values, sums)

    def means(self, kind: str) -> dict[str, float]:
        """The epoch's means so far over all processes, of the steps that were finite."""
        sums = self._sums[kind].to(self.device)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        *parts, count = sums.tolist()
        return {
            f"{kind}_{name}": value / count if count else math.nan
            for name, value in zip(_PARTS, parts, strict=True)
        }

    def on_validation_epoch_end(self) -> None:
        """Logs the held-out means."""
        self._log(self.means("held_out"))
        self._sums["held_out"].zero_()

    def on_train_epoch_end(self) -> None:
        """Logs the training means, and how many steps were skipped so far."""
        self._log({**self.means("train"), "skipped": float(self.skipped)})
        self._sums["train"].zero_()

    def _log(self, values: Mapping[str, float]) -> None:
        # In float32, which every device has.
        self.log_dict({k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()})

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes the gradient away where it is not finite: optimisers pass such parameters by."""
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if not grads:
            return
        total = torch.nn.utils.get_total_norm(grads)
        # The norm overflows before its parts do.
        bad = not bool(torch.isfinite(total)) and not all(
            bool(torch.isfinite(grad).all()) for grad in grads
        )
        if self.trainer.world_size > 1:
            flag = torch.tensor(float(bad), device=self.device)
            bad = bool(self.trainer.strategy.reduce(flag, reduce_op="sum") > 0)
        if bad:
            self.skipped += 1
            for parameter in self.parameters():
                parameter.grad = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what a resumed epoch's metrics need."""
        sums = {kind: sums.tolist() for kind, sums in self._sums.items()}
        checkpoint["vaefast"] = {"sums": sums, "skipped": self.skipped}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it back; a checkpoint of an older version has none."""
        kept = checkpoint.get("vaefast", {})
        self.skipped = int(kept.get("skipped", 0))
        for kind, sums in kept.get("sums", {}).items():
            self._sums[kind] = torch.tensor(sums, dtype=torch.float64)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Metrics(lightning.Callback):
    """Appends each epoch to the run's metrics.csv; stops a run of which no step was finite."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, LitVAE)
        found = trainer.callback_metrics
        row: Row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= pl_module.means("train")
        row |= {name: found[name].item() for name in _COLUMNS if name in found and name not in row}
        if not math.isfinite(row["train_loss"]):
            raise InputError(
                f"the loss is {row['train_loss']} in epoch {row['epoch']}: try a lower --lr, or "
                "--clip; the checkpoint before it is kept"
            )
        # An epoch that Ctrl-C cut short has no held-out values; a resumed run makes its row.
        if all(name in row for name in _COLUMNS):
            self.run.append_metrics(row)
