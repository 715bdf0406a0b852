"""The digits, the settings, and the models that claims share."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..train.files import whole
from .fit import fit
from .models import KINDS, Autoencoder

PIXELS, LEVELS = 64, 17
M = TypeVar("M", bound=nn.Module)


class Part(NamedTuple):
    """Digits `[N, 64]`, of 17 levels in [0, 1], and their labels `[N]`."""

    x: Tensor
    labels: Tensor


class Digits(NamedTuple):
    """Training digits, those that say when training has gone on too long, and those that are
    measured on."""

    train: Part
    validation: Part
    test: Part


def load_digits() -> Digits:
    """scikit-learn's 1797 digits, 8x8 pixels, split at random with as many of each class: 1197,
    240 and 360."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    bunch = load()
    pixels = torch.from_numpy(bunch.data).float().div(16)
    labels = torch.from_numpy(bunch.target)

    def parted(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        first, second = train_test_split(
            rows, test_size=count, stratify=bunch.target[rows], random_state=0
        )
        return first, second

    rest, test = parted(np.arange(len(labels)), 360)
    train, validation = parted(rest, 240)
    return Digits(*(Part(pixels[rows], labels[rows]) for rows in (train, validation, test)))


class Context:
    """What a claim is run with.

    Args:
        quick: fewer epochs, repeats and samples: to see that it runs, not to learn from.
        seed: of all initial weights, noise and draws.
        say: gets a line on what is being trained.
        folder: where trained models are kept, and found by a run that goes on; None for nowhere.
    """

    def __init__(
        self,
        *,
        quick: bool = False,
        seed: int = 0,
        say: Callable[[str], None] = lambda text: None,
        folder: Path | None = None,
    ) -> None:
        self.quick, self.seed, self.say, self.folder = quick, seed, say, folder
        self.digits = load_digits()
        # Trainings of each model, with initial weights and noise of their own.
        self.repeats = 1 if quick else 3
        self.epochs = 40 if quick else 300
        # Draws of labels, and samples of the posterior for log p(x).
        self.draws, self.samples = (3, 500) if quick else (10, 5000)
        self._models: dict[tuple[str, int], Autoencoder] = {}

    def model(self, kind: str, repeat: int = 0) -> Autoencoder:
        """The model of that kind (a key of `KINDS`), trained when it is first asked for."""
        key = (kind, repeat)
        if key not in self._models:
            data, seed = self.digits, self.seed_of(kind, repeat)

            def train(model: Autoencoder) -> None:
                self.say(f"training: {KINDS[kind].name}, {repeat + 1} of {self.repeats}")
                fit(
                    model,
                    lambda x: model.loss(x, dataset_size=len(data.train.x)),
                    lambda: model.loss(
                        data.validation.x, dataset_size=len(data.validation.x), seed=seed
                    ),
                    data.train.x,
                    epochs=self.epochs,
                    seed=seed,
                )

            self._models[key] = self.trained(
                f"{kind}-{repeat}", lambda: Autoencoder(KINDS[kind]), train, seed
            )
        return self._models[key]

    def trained(self, name: str, make: Callable[[], M], train: Callable[[M], None], seed: int) -> M:
        """What `make` gives with its weights from `seed`, as `train` leaves it, or as a run that
        was interrupted has kept it under this name."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = make()
        kept = None if self.folder is None else self.folder / f"model-{name}.pt"
        if kept is not None and kept.exists():
            model.load_state_dict(torch.load(kept, weights_only=True))
            model.eval().requires_grad_(False)
            return model
        train(model)
        if kept is not None:
            with whole(kept) as part:
                torch.save(model.state_dict(), part)
        return model

    def seed_of(self, name: str, repeat: int = 0) -> int:
        """A seed of its own for each purpose, which follows from the one seed."""
        return zlib.crc32(f"{name} {repeat} {self.seed}".encode()) % 2**31
