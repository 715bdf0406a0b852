"""The folder that a training run leaves behind: configuration, metrics, weights, summary."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import InputError
from .models import VAE

CONFIG, METRICS, WEIGHTS, SUMMARY = (
    "config.json",
    "metrics.csv",
    "weights.safetensors",
    "summary.json",
)


class RunFolder:
    """Creates a run's folder and writes its files; never over another run unless told to.

    Args:
        path: the folder; made where it is missing.
        overwrite: a run that is there already may be written over.
        resume: the run that is there is gone on with.

    Raises:
        InputError: the folder holds a run or other files, or there is none to resume.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; give a folder")
        if resume:
            if not (self.path / CONFIG).exists():
                raise InputError(f"{self.path} holds no run to resume: {CONFIG} is missing")
        elif self.path.is_dir() and any(self.path.iterdir()):
            is_run = (self.path / CONFIG).exists()
            if not (overwrite and is_run):
                what = "holds a run already" if is_run else "is not empty, and holds no run"
                ways = "give another folder" + (", or --overwrite" if is_run else "")
                raise InputError(f"{self.path} {what}; {ways}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {self.path}: {error.strerror}") from None
        if overwrite and not resume:
            (self.path / METRICS).unlink(missing_ok=True)

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes a mapping as JSON."""
        self._replace(name, (json.dumps(values, indent=2) + "\n").encode())

    def read_config(self) -> dict[str, Any]:
        """config.json as it was written."""
        config: dict[str, Any] = json.loads(self.file(CONFIG).read_text())
        return config

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Appends one row to metrics.csv; it is on disk when this returns."""
        path = self.file(METRICS)
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv."""
        if not self.file(METRICS).exists():
            return []
        with self.file(METRICS).open(newline="") as file:
            return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]

    def keep_metrics(self, steps: int) -> None:
        """Drops the rows after so many steps, which a resumed run will write anew."""
        rows = [row for row in self.read_metrics() if row["step"] <= steps]
        self.file(METRICS).unlink(missing_ok=True)
        for row in rows:
            self.append_metrics({**row, "epoch": int(row["epoch"]), "step": int(row["step"])})

    def write_weights(self, model: VAE) -> None:
        """Writes the model's weights as safetensors."""
        from safetensors.torch import save

        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        self._replace(WEIGHTS, save(state))

    def _replace(self, name: str, content: bytes) -> None:
        # An interrupted write must not leave half a file where a whole one was.
        path, part = self.file(name), self.file(name + ".part")
        part.write_bytes(content)
        os.replace(part, path)


def load(path: str | Path) -> VAE:
    """The trained model of a run folder, on the CPU.

    Raises:
        InputError: the folder holds no run.
    """
    from safetensors.torch import load_file

    path = Path(path)
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).exists()]
    if missing:
        raise InputError(f"{path} holds no finished run: {' and '.join(missing)} missing")
    model = VAE(**json.loads((path / CONFIG).read_text())["model"])
    model.load_state_dict(load_file(path / WEIGHTS))
    return model.eval().requires_grad_(False).to(torch.get_default_dtype())
