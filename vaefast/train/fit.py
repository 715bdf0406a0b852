"""Training under Lightning's `Trainer`: batches, checkpoints, resuming, and a graceful Ctrl-C."""

from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from . import InputError
from .data import Split
from .files import whole
from .lit import LitVAE, Metrics
from .run_folder import BEST, CHECKPOINTS, LAST, PREVIOUS, RunFolder


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


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole on the disk before they take the place of the one before.

    Lightning's own may be moved there from another file system, which is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes `path`; a last checkpoint that is there is kept as the one before."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Through memory: the error of a full disk is then the system's, which says so.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        if path.name == LAST and path.exists():
            with whole(path.with_name(PREVIOUS)) as part:
                _link(path, part)
        with whole(path, sync=True) as part:
            part.write_bytes(content.getbuffer())


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
    _quieten()
    folder = run.file(CHECKPOINTS)
    interrupt = StopOnInterrupt()
    keep = ModelCheckpoint(
        dirpath=folder,
        filename=Path(BEST).stem,
        monitor="held_out_loss",
        save_last=True,
        # After the metrics have their row, so that no checkpoint is ahead of metrics.csv.
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
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
        plugins=[WholeCheckpoints()],
        callbacks=[Metrics(run), keep, interrupt, RichProgressBar(), *callbacks],
    )
    trainer.fit(
        module,
        _batches(data.train, batch_size, module.seed, shuffle=True),
        _batches(data.held_out, batch_size, module.seed, shuffle=False),
        ckpt_path=folder / LAST if resume else None,
    )
    if interrupt.interrupted:
        trainer.save_checkpoint(folder / LAST)
    return interrupt.interrupted


def check_accelerator(name: str) -> None:
    """Raises InputError where Lightning cannot use this accelerator here."""
    _quieten()
    try:
        lightning.Trainer(accelerator=name, devices=1, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"accelerator {name!r} cannot be used: {reason}") from None


def steps_done(run: RunFolder) -> int:
    """The steps behind the last checkpoint; where that cannot be read, the one before becomes it.

    Raises:
        InputError: the run has none that can be read.
    """
    folder = run.file(CHECKPOINTS)
    last, previous = folder / LAST, folder / PREVIOUS
    steps = _steps(last)
    if steps is None and not previous.exists():
        how = "cannot be read, and there is none before it" if last.exists() else "is missing"
        raise InputError(f"{run.path} holds no checkpoint to resume from: {last} {how}")
    if steps is None:
        steps = _steps(previous)
        if steps is None:
            raise InputError(f"{last} cannot be read, and neither can {previous}")
        run.say(f"{last} cannot be read: going on from {previous}, step {steps}")
        with whole(last) as part:
            _link(previous, part)
    return steps


def _steps(path: Path) -> int | None:
    try:
        # `weights_only`: numbers and tensors are all that these checkpoints hold.
        return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    # A file that was cut off fails in many ways: in zipfile's, pickle's, a missing key.
    except Exception:
        return None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # A file system without links.
        shutil.copyfile(source, target)


def _quieten() -> None:
    # These say what is meant to be so: the data is in memory, and the metrics have a file.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def _batches(data: Tensor, size: int, seed: int, *, shuffle: bool) -> DataLoader[Tensor]:
    # Lightning tells this sampler the epoch, which with the seed settles the order.
    sampler: DistributedSampler[Tensor] = DistributedSampler(
        Rows(data), num_replicas=1, rank=0, shuffle=shuffle, seed=seed
    )
    return DataLoader(Rows(data), size, sampler=sampler, collate_fn=lambda batch: batch)
