"""What `vaefast train`'s loop takes beside the model: its step against a hand-written one, what the
data takes of it, and what Lightning's Trainer takes by itself.

    python -m benchmarks training
"""

from __future__ import annotations

import itertools
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

import vaefast as vf
from vaefast.train import models
from vaefast.train.data import Parts, Samples, load_samples, split_samples
from vaefast.train.fit import Fit
from vaefast.train.machine import Machine
from vaefast.train.models import VAE
from vaefast.train.run_folder import RunFolder
from vaefast.train.trained import Trained

from . import record
from .case import Call
from .harness import interleaved, warm_up

BATCH = 128
DIGITS = {"name": "vae", "shape": [1, 8, 8], "latent": 16, "likelihood": "bernoulli"}
HAND, HAND_PLAIN = "a hand-written loop", "the same, Adam without fused="
FIT, TRAINER = "vaefast train", "Lightning's Trainer alone, an empty module"
STEP, DATA = "step", "its data"
END = "the end of an epoch: held-out losses, metrics.csv, checkpoints"


def measure(*, rounds: int = 40, budget: float = 20.0, steps: int = 400) -> dict[str, float]:
    """Microseconds of a step by name, medians of interleaved rounds.

    Args:
        budget: seconds for each case.
        steps: of the Trainer, whose loop cannot be called a step at a time.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = _digits(Path(folder), rounds, budget)
        found[f"digits, MLP: {TRAINER}"] = trainer(steps)
        found[f"digits, MLP: {END}"] = epoch_end(Path(folder) / "epochs", rounds)
        for arch in ("mlp", "conv"):
            found |= _images(Path(folder) / arch, arch, rounds, budget)
    return found


def _digits(folder: Path, rounds: int, budget: float) -> dict[str, float]:
    data = split_samples(load_samples("digits"), 0.1, 0)
    whole = data.train[:]
    calls = {
        HAND: hand(_model(DIGITS), whole, fused=True),
        HAND_PLAIN: hand(_model(DIGITS), whole, fused=None),
        FIT: steps_of(fit_loop(folder / "digits", DIGITS, data)),
    }
    return {f"digits, MLP: {k}": v for k, v in _medians(calls, rounds, budget).items()}


def _images(folder: Path, arch: str, rounds: int, budget: float) -> dict[str, float]:
    """64x64 pixels in a memory-mapped file, as a folder of images is from its second epoch on."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 3, 64, 64), np.uint8)
    np.save(folder / "x.npy", pixels)
    data = split_samples(load_samples(folder / "x.npy"), 0.1, 0)
    settings = {
        "name": "vae",
        "shape": [3, 64, 64],
        "latent": 16,
        "likelihood": "bernoulli",
        "arch": arch,
        "width": 256 if arch == "mlp" else 8,
    }
    loop = fit_loop(folder / "run", settings, data)
    order, turn = loop.order(), itertools.cycle(range(loop.steps - 1))
    calls = {STEP: steps_of(loop), DATA: lambda: loop.batch(data.train, order, next(turn))}
    return {f"64x64, {arch}: {k}": v for k, v in _medians(calls, rounds, budget).items()}


def _medians(
    calls: dict[str, Callable[[], object]], rounds: int, budget: float
) -> dict[str, float]:
    made = {name: Call(run, "auto") for name, run in calls.items()}
    failed = warm_up(made)
    if failed:
        raise RuntimeError(str(failed))
    times = interleaved(made, rounds=rounds, budget=budget)
    return {name: 1e6 * summary.median for name, summary in times.items()}


def epoch_end(folder: Path, rounds: int) -> float:
    """Microseconds of what the loop does behind an epoch's steps."""
    data, taken = split_samples(load_samples("digits"), 0.1, 0), []
    with RunFolder(folder) as run:
        loop = fit_loop(folder, DIGITS, data, run)
        for _ in range(rounds):
            all(loop.rest_of_epoch())
            start = time.perf_counter()
            loop.end_epoch()
            taken.append(time.perf_counter() - start)
    return 1e6 * statistics.median(taken)


def fit_loop(folder: Path, model: dict[str, Any], data: Parts, run: RunFolder | None = None) -> Fit:
    """The loop of `vaefast train` before its first step."""
    torch.manual_seed(0)
    run = run or RunFolder(folder, writes=False)
    fabric = Machine(accelerator="cpu").fabric(run)
    fabric.launch()
    loop = Fit(fabric, Trained(model), data, run, BATCH, None, None)
    loop.begin(resume=False)
    return loop


def steps_of(loop: Fit) -> Callable[[], bool]:
    """A call that does one step, epoch after epoch."""

    def steps() -> Iterator[bool]:
        while True:
            yield from loop.rest_of_epoch()
            loop.epoch, loop.begun = loop.epoch + 1, 0

    return steps().__next__


def _model(settings: dict[str, Any]) -> VAE:
    torch.manual_seed(0)
    model = models.build(**settings)
    assert isinstance(model, VAE)
    return model


def hand(model: VAE, data: Tensor, *, fused: bool | None) -> Callable[[], object]:
    """A step of the loop that one writes around a model."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)

    def steps() -> Iterator[None]:
        while True:
            for rows in torch.randperm(len(data)).split(BATCH):
                x = data[rows]
                z, kl = vf.sample_kl(*model.encode(x))
                loss = vf.elbo_loss(model.decode(z), x, kl=kl, likelihood=model.likelihood()).loss
                adam.zero_grad()
                loss.backward()
                adam.step()
                yield

    return steps().__next__


class _Empty(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, x: Tensor, index: int) -> Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class _Clock(lightning.Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *arguments: object) -> None:
        self.times.append(time.perf_counter())


def trainer(steps: int) -> float:
    """Microseconds of a step of Lightning's Trainer that does nothing, with all that can be
    switched off switched off."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock, data = _Clock(), Samples(torch.zeros(steps, 1))[:]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = lightning.Trainer(
            accelerator="cpu", max_epochs=1, enable_model_summary=False, callbacks=[clock], **quiet
        )
        run.fit(_Empty(), torch.utils.data.DataLoader(data))
    return 1e6 * statistics.median(b - a for a, b in itertools.pairwise(clock.times))


def lines(found: dict[str, float]) -> list[str]:
    """The figures, and the ratios that are asked for."""
    shown = [f"{value:12.1f} us  {name}" for name, value in found.items()]
    hand_us = found[f"digits, MLP: {HAND}"]
    shown.append(f"{found[f'digits, MLP: {FIT}'] / hand_us:12.3f}     {FIT} over {HAND}")
    shown.append(
        f"{1 + found[f'digits, MLP: {TRAINER}'] / hand_us:12.3f}     {TRAINER}, and {HAND}, over it"
    )
    for arch in ("mlp", "conv"):
        step, data = (found[f"64x64, {arch}: {name}"] for name in (STEP, DATA))
        shown.append(f"{100 * data / step:11.1f}%     64x64, {arch}: the data's share of a step")
    return shown


def write(path: Path | None, **how: Any) -> None:
    """Measures, prints, and writes a file where one is named."""
    found = measure(**how)
    print(*lines(found), sep="\n")
    if path is not None:
        kept = {"machine": record.machine(torch.device("cpu")), "microseconds": found}
        path.write_text(json.dumps(kept, indent=1) + "\n")
