"""Training under Lightning's `Trainer`: batches, checkpoints, resuming, and a graceful Ctrl-C."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from . import InputError
from .data import Split
from .lit import LitVAE, Metrics
from .run_folder import RunFolder

CHECKPOINTS, LAST = "checkpoints", "last.ckpt"


class Rows(Dataset[Tensor]):
    """The rows of a tensor, fetched a batch at a time."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Tensor:
        return self.data[row]

    def __getitems__(self, rows: Sequence[int]) -> Tensor:
        return self.data[torch.as_tensor(rows)]


class StopOnInterrupt(Callback):
    """The first Ctrl-C ends training after the current step, the second one at once."""

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            self.interrupted = trainer.should_stop = True
            signal.signal(signal.SIGINT, self._previous)

        self._previous = signal.signal(signal.SIGINT, stop)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)


def fit(
    module: LitVAE,
    data: Split,
    run: RunFolder,
    *,
    epochs: int,
    batch_size: int,
    resume: bool = False,
    accelerator: str = "auto",
    batches: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> bool:
    """Trains `module` in place, and keeps its last and best checkpoint in the run's folder.

    Args:
        resume: go on from the last checkpoint.
        batches: no more than so many per epoch.

    Returns:
        True where Ctrl-C ended the training early.
    """
    # These say what is meant to be so: the data is in memory, and the metrics have a file.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    folder = run.file(CHECKPOINTS)
    interrupt = StopOnInterrupt()
    keep = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor="held_out_loss",
        save_last=True,
        enable_version_counter=False,
    )
    try:
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=epochs,
            limit_train_batches=batches,
            limit_val_batches=batches,
            num_sanity_val_steps=0,
            logger=False,
            enable_model_summary=False,
            default_root_dir=run.path,
            callbacks=[Metrics(run), keep, interrupt, RichProgressBar(), *callbacks],
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"accelerator {accelerator!r} cannot be used: {reason}") from None
    trainer.fit(
        module,
        _batches(data.train, batch_size, module.seed, shuffle=True),
        _batches(data.held_out, batch_size, module.seed, shuffle=False),
        ckpt_path=folder / LAST if resume else None,
    )
    if interrupt.interrupted:
        trainer.save_checkpoint(folder / LAST)
    return interrupt.interrupted


def steps_done(run: RunFolder) -> int:
    """The steps behind the last checkpoint.

    Raises:
        InputError: the run has none.
    """
    path = run.file(CHECKPOINTS) / LAST
    if not path.exists():
        raise InputError(f"{run.path} holds no checkpoint to resume from")
    # `weights_only`: numbers and tensors are all that these checkpoints hold.
    return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])


def _batches(data: Tensor, size: int, seed: int, *, shuffle: bool) -> DataLoader[Tensor]:
    # Lightning tells this sampler the epoch, which with the seed settles the order.
    sampler: DistributedSampler[Tensor] = DistributedSampler(
        Rows(data), num_replicas=1, rank=0, shuffle=shuffle, seed=seed
    )
    return DataLoader(Rows(data), size, sampler=sampler, collate_fn=lambda batch: batch)
