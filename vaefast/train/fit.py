"""Training under Lightning's `Trainer`: batches, checkpoints, resuming, and a graceful Ctrl-C."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from .. import _install
from . import InputError
from .data import Parts, Samples
from .files import whole
from .lit import Batch, LitVAE, Metrics
from .run_folder import BEST, CHECKPOINTS, LAST, PREVIOUS, RunFolder


class Rows(Dataset[Batch]):
    """Samples, fetched a batch at a time: of a batch's rows, this process's part."""

    def __init__(self, data: Samples) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        whole, rank, world = len(rows), 0, 1
        if dist.is_available() and dist.is_initialized():
            rank, world = dist.get_rank(), dist.get_world_size()
        start, end = rank * whole // world, (rank + 1) * whole // world
        return Batch(self.data.take(torch.as_tensor(rows[start:end]).long()), start, whole)


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
    data: Parts,
    run: RunFolder,
    *,
    epochs: int,
    batch_size: int,
    resume: bool = False,
    batches: int | None = None,
    callbacks: Sequence[Callback] = (),
    machine: Machine | None = None,
) -> bool:
    """Trains `module` in place, and keeps its last and best checkpoint in the run's folder.

    Args:
        batch_size: samples per step, of all processes together.
        resume: go on from the last checkpoint.
        batches: no more than so many per epoch.
        machine: what Lightning runs it on.

    Returns:
        True where Ctrl-C ended the training early.

    Raises:
        InputError: the machine cannot be had.
    """
    _quieten()
    machine = machine or Machine()
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
    train = _batches(data.train, batch_size, module.seed, shuffle=True)
    # Drawn at every step, the bar takes as long as a small model's step.
    bar = [RichProgressBar(refresh_rate=max(1, len(train) // 20))] if run.writes else []
    trainer = lightning.Trainer(
        **machine.arguments(),
        max_epochs=epochs,
        limit_train_batches=batches,
        limit_val_batches=batches,
        num_sanity_val_steps=0,
        logger=_logger(run, machine),
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_progress_bar=bool(bar),
        default_root_dir=run.path,
        # A batch is cut into the processes' parts where it is fetched.
        use_distributed_sampler=False,
        plugins=[WholeCheckpoints()],
        callbacks=[Metrics(run), keep, interrupt, *bar, *callbacks],
    )
    trainer.fit(
        module,
        train,
        _batches(data.held_out, batch_size, module.seed, shuffle=False),
        ckpt_path=folder / LAST if resume else None,
    )
    if interrupt.interrupted:
        trainer.save_checkpoint(folder / LAST)
    return interrupt.interrupted


@dataclass(frozen=True)
class Machine:
    """What Lightning's `Trainer` is told of the same name: `clip` is `gradient_clip_val`, `nodes`
    `num_nodes`; `tensorboard` writes its files too."""

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    clip: float | None = None
    tensorboard: bool = False

    def arguments(self) -> dict[str, Any]:
        """As the Trainer takes them."""
        strategy = self.strategy
        if self.devices * self.nodes > 1 and strategy in ("auto", "ddp"):
            # An autoencoder's loss leaves the likelihood's learned scale out.
            strategy = "ddp_find_unused_parameters_true"
        return {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "num_nodes": self.nodes,
            "strategy": strategy,
            "precision": self.precision,
            "gradient_clip_val": self.clip,
        }

    def check(self) -> None:
        """Raises InputError where Lightning cannot have this here."""
        _quieten()
        if self.tensorboard and not any(
            importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")
        ):
            raise InputError(f"tensorboard missing: {_install.command('tensorboard')}")
        try:
            lightning.Trainer(**self.arguments(), logger=False, enable_checkpointing=False)
        except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            where = ", ".join(
                f"{name} {value!r}"
                for name, value in asdict(self).items()
                if value != getattr(Machine(), name) or name == "accelerator"
            )
            raise InputError(f"{where} cannot be used: {reason}") from None


def is_first() -> bool:
    """True in the one process that writes, of those that a strategy or a cluster starts."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def _logger(run: RunFolder, machine: Machine) -> Any:
    if not machine.tensorboard:
        return False
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(run.path, name="tensorboard", version="")


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


def _batches(data: Samples, size: int, seed: int, *, shuffle: bool) -> DataLoader[Batch]:
    # Lightning tells this sampler the epoch, which with the seed settles the order.
    rows = Rows(data)
    sampler: DistributedSampler[Batch] = DistributedSampler(
        rows, num_replicas=1, rank=0, shuffle=shuffle, seed=seed
    )
    return DataLoader(rows, size, sampler=sampler, collate_fn=lambda batch: batch)
