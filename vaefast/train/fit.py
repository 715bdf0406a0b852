"""Training by a loop of our own on Lightning's Fabric: checkpoints, resuming, a graceful Ctrl-C.

Fabric has the machines (devices, strategies, precision, loggers) of Lightning's Trainer without its
loop, which alone takes a fifth of a small model's step: docs/notes.md.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.fsdp import FSDPStrategy
from lightning.fabric.strategies.single_device import SingleDeviceStrategy
from torch import Tensor

from .._torch import all_finite
from . import InputError
from .checkpoints import keep, read
from .data import Parts, Samples
from .loop import Row
from .machine import Machine
from .objectives import Loss, Step
from .run_folder import CHECKPOINTS, LAST, RunFolder
from .trained import Batch, Means, Trained, gradient_norm, means

_KINDS = ("train", "held_out")


def fit(
    module: Trained,
    data: Parts,
    run: RunFolder,
    *,
    epochs: int,
    batch_size: int,
    lr: float = 1e-3,
    warmup: int = 0,
    seed: int = 0,
    resume: bool = False,
    batches: int | None = None,
    callbacks: Sequence[Any] = (),
    machine: Machine | None = None,
) -> Fit:
    """Trains `module` in place by Adam, and keeps its last and best checkpoint in the run's folder.

    The order of the samples follows from the seed and the epoch, the noise of step n from the seed
    and n, so that a resumed run goes on to the same bits as if it had never stopped. Where several
    processes share a batch, each has its part of it and of one stream of noise, and their gradient
    is that of the whole batch. A step whose gradient is not finite changes nothing and is counted.

    Args:
        batch_size: samples per step, of all processes together.
        lr: of Adam.
        warmup: epochs over which the KL's weight (or its capacity) rises linearly from 0.
        resume: go on from the last checkpoint.
        batches: no more than so many per epoch.
        callbacks: Fabric's; `on_before_optimizer_step(module, optimizer)` is called at every step.
        machine: what Lightning runs it on.

    Raises:
        InputError: the machine cannot be had, or no step of an epoch was finite.
    """
    machine = machine or Machine()
    fabric = machine.fabric(run, callbacks)
    fabric.launch()
    loop = Fit(fabric, module, data, run, batch_size, batches, machine.clip)
    loop.lr, loop.warmup, loop.seed = lr, warmup, seed
    loop.begin(resume=resume)
    loop.run_to(epochs)
    return loop


class Fit:
    """A training under way. `interrupted`: Ctrl-C or SIGTERM ended it early; `skipped`: steps whose
    gradient was not finite; `epoch`: epochs that are done; `done`: steps."""

    lr, warmup, seed = 1e-3, 0, 0

    def __init__(
        self,
        fabric: Fabric,
        module: Trained,
        data: Parts,
        run: RunFolder,
        batch_size: int,
        batches: int | None,
        clip: float | None,
    ) -> None:
        self.fabric, self.module, self.data, self.run = fabric, module, data, run
        self.size, self.limit, self.clip = batch_size, batches, clip
        self.steps = self._count(data.train)
        self.epoch = self.begun = self.done = self.skipped = 0
        self.best = math.inf
        self.means = {kind: Means(finite=kind == "train") for kind in _KINDS}
        self.interrupted = self._asked = False
        self._bar: _Bar | None = None

    def _count(self, data: Samples) -> int:
        steps = math.ceil(len(data) / self.size)
        return steps if self.limit is None else min(steps, self.limit)

    def begin(self, *, resume: bool) -> None:
        """Puts the module on its device, and takes up the last checkpoint where asked to."""
        fabric = self.fabric
        # None where a GPU has to scale float16's gradients, which Adam's fused kernel does not
        # leave to others.
        self._scaler = getattr(fabric.strategy.precision, "scaler", None)
        self._wrapped = fabric.setup_module(self.module)
        self._parameters = list(self._wrapped.parameters())
        # One pass over each parameter; in Python it takes a tenth of a small model's step.
        fused = fabric.device.type in ("cpu", "cuda") and self._scaler is None
        adam = torch.optim.Adam(self._parameters, lr=self.lr, fused=fused or None)
        self._optimizer: Any = fabric.setup_optimizers(adam)
        # Nothing is around a module on one device: what Fabric casts on its way in and out costs
        # as much as the sampling.
        self._plain = isinstance(fabric.strategy, SingleDeviceStrategy)
        self._dtype = self._parameters[0].dtype
        if resume:
            self._load()

    def run_to(self, epochs: int) -> None:
        """Trains until so many epochs are done, or Ctrl-C."""
        with self._interruptible(), _Bar(self, epochs) as self._bar:
            while self.epoch < epochs:
                if not all(self.rest_of_epoch()):
                    self.interrupted = True
                    self._save()
                    break
                self.end_epoch()
                if self._agreed(self._asked):
                    self.interrupted = self.epoch < epochs
                    break

    def order(self) -> Tensor:
        """The order of this epoch's samples, as torch's DistributedSampler has it."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(len(self.data.train), generator=generator)

    def rest_of_epoch(self) -> Iterator[bool]:
        """Does one step after the other, up to the epoch's last; False where all processes are to
        stop."""
        self.module.train()
        order = self.order()
        while self.begun < self.steps:
            yield self._step(self.batch(self.data.train, order, self.begun))

    def batch(self, data: Samples, order: Tensor, index: int) -> Batch:
        """This process's part of batch number `index`."""
        first = index * self.size
        whole = min(self.size, len(order) - first)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        start, end = rank * whole // world, (rank + 1) * whole // world
        x = data.take(order[first + start : first + end]).to(self.fabric.device)
        return Batch(x.to(self._dtype) if x.is_floating_point() else x, start, whole)

    def _forward(self, batch: Batch, step: Step, held_out: bool = False) -> Loss:
        if not self._plain:
            return self._wrapped(batch, step, held_out)  # type: ignore[no-any-return]
        with self.fabric.autocast():
            return self.module(batch, step, held_out)  # type: ignore[no-any-return]

    def _step(self, batch: Batch) -> bool:
        """One step; False where all processes are to stop after it."""
        world, warm = self.fabric.world_size, self.warmup * self.steps
        step = Step(
            seed=self.seed * 2**32 + self.done,
            offset=batch.start,
            warm=min(1.0, (self.done + 1) / warm) if warm else 1.0,
            dataset_size=len(self.data.train),
            gather=world > 1 and batch.whole % world == 0,
        )
        self._optimizer.zero_grad()
        out = self._forward(batch, step)
        self.means["train"].add(out, len(batch.x))
        # The mean over the processes is to be that of the whole batch.
        loss = out.loss if world == 1 else out.loss * (len(batch.x) * world / batch.whole)
        self.fabric.backward(loss)
        self.fabric.call("on_before_optimizer_step", module=self.module, optimizer=self._optimizer)
        bad, stop = self._clipped(), self._asked
        if world > 1:
            flags = torch.tensor([float(bad), float(stop)], device=self.fabric.device)
            bad, stop = (flag > 0 for flag in self._summed(flags).tolist())
        if bad:
            # Optimisers pass parameters without a gradient by.
            self.skipped += 1
            for parameter in self._parameters:
                parameter.grad = None
        self._optimizer.step()
        self.done += 1
        self.begun += 1
        if self._bar is not None:
            self._bar.advance()
        return not stop

    def _clipped(self) -> bool:
        """Clips the gradient's norm; True where the gradient is not finite."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:
            return False
        if isinstance(self.fabric.strategy, FSDPStrategy):
            # Each process has a part of each gradient.
            total = self.fabric.clip_gradients(
                self._wrapped,
                self._optimizer,
                max_norm=math.inf if self.clip is None else self.clip,
                error_if_nonfinite=False,
            )
            return total is not None and not math.isfinite(total.item())
        if self._scaler is not None:
            self.fabric.strategy.precision.unscale_gradients(self._optimizer.optimizer)
        if self.clip is None:
            return not all_finite(gradients)
        total, finite = gradient_norm(gradients)
        if finite:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip, total)
        return not finite

    def end_epoch(self) -> None:
        """Held-out losses, the epoch's row and log, and checkpoints."""
        self._validate()
        self._finish_epoch()

    @torch.no_grad()
    def _validate(self) -> None:
        """The held-out losses, with the same noise every epoch."""
        self.module.eval()
        held_out = self.data.held_out
        order = torch.arange(len(held_out))
        for index in range(self._count(held_out)):
            batch = self.batch(held_out, order, index)
            step = Step(seed=(self.seed + index) * 2**32, offset=batch.start)
            self.means["held_out"].add(self._forward(batch, step, True), len(batch.x))

    def _finish_epoch(self) -> None:
        """The epoch's row, log and checkpoints, in this order: no checkpoint is ahead of
        metrics.csv."""
        found: dict[str, float] = {}
        for kind in _KINDS:
            sums = torch.tensor(self.means[kind].sums, dtype=torch.float64)
            if self.fabric.world_size > 1:
                sums = self._summed(sums.to(self.fabric.device))
            found |= means(kind, sums.tolist())
            self.means[kind].clear()
        row: Row = {"epoch": self.epoch + 1, "step": self.done, **found}
        if not math.isfinite(row["train_loss"]):
            raise InputError(
                f"the loss is {row['train_loss']} in epoch {row['epoch']}: try a lower --lr, or "
                "--clip; the checkpoint before it is kept"
            )
        self.epoch, self.begun = self.epoch + 1, 0
        self.run.append_metrics(row)
        if self.fabric.loggers:
            self.fabric.log_dict({**found, "skipped": float(self.skipped)}, step=self.done)
        better = row["held_out_loss"] < self.best
        if better:
            self.best = row["held_out_loss"]
        self._save(best=better)
        if self._bar is not None:
            self._bar.show(row)

    def _summed(self, values: Tensor) -> Tensor:
        total = self.fabric.all_reduce(values, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _agreed(self, flag: bool) -> bool:
        if self.fabric.world_size == 1:
            return flag
        return bool(self._summed(torch.tensor(float(flag), device=self.fabric.device)) > 0)

    def _save(self, *, best: bool = False) -> None:
        state = {
            "state_dict": self._wrapped,
            "optimizer": self._optimizer,
            "global_step": self.done,
            "epoch": self.epoch,
            "begun": self.begun,
            "precision": self.fabric.strategy.precision.state_dict(),
            "vaefast": {
                "sums": {kind: self.means[kind].sums for kind in _KINDS},
                "skipped": self.skipped,
                "best": self.best,
            },
        }
        keep(self.fabric, self.run.file(CHECKPOINTS), state, best=best)

    def _load(self) -> None:
        path = self.run.file(CHECKPOINTS) / LAST
        found = read(path)
        if isinstance(self.fabric.strategy, FSDPStrategy):
            parts: dict[str, Any] = {"state_dict": self._wrapped, "optimizer": self._optimizer}
            self.fabric.load(path, parts, strict=False)
        else:
            self.module.load_state_dict(found["state_dict"])
            self._optimizer.load_state_dict(found["optimizer"])
        self.fabric.strategy.precision.load_state_dict(found["precision"])
        self.done, self.epoch = found["global_step"], found["epoch"]
        # An epoch that was cut short, as a trial's are, is not gone on with.
        self.begun = min(found["begun"], self.steps)
        kept = found["vaefast"]
        self.skipped, self.best = int(kept["skipped"]), float(kept["best"])
        for kind, sums in kept["sums"].items():
            self.means[kind].sums = sums

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C, or SIGTERM, ends the training after the current step, the second at
        once."""
        before: dict[signal.Signals, Any] = {}

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True
            signal.signal(number, before[signal.Signals(number)])

        # Python lets no other thread have signals.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.getsignal(number) or signal.SIG_DFL
                signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Bar:
    """Epochs, steps and the losses on the terminal, drawn at most twice a second: a drawing takes
    as long as a small model's step."""

    def __init__(self, loop: Fit, epochs: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.loop, self.epochs, self.text = loop, epochs, ""
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, auto_refresh=False, disable=not loop.run.writes)
        self.task = self.progress.add_task("", total=epochs * loop.steps, epoch="", text="")
        self.drawn = -math.inf

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._draw()
        self.progress.stop()

    def advance(self) -> None:
        """After each step."""
        if time.monotonic() - self.drawn > 0.5:
            self._draw()

    def show(self, row: Row) -> None:
        """After each epoch."""
        self.text = f"loss {row['train_loss']:.2f}  held out {row['held_out_loss']:.2f}"

    def _draw(self) -> None:
        loop = self.loop
        self.progress.update(
            self.task,
            completed=loop.epoch * loop.steps + loop.begun,
            epoch=f"{min(loop.epoch + 1, self.epochs)}/{self.epochs}",
            text=self.text,
            refresh=True,
        )
        self.drawn = time.monotonic()
