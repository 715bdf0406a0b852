"""The folder that a training run leaves behind: configuration, metrics, weights, summary."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from . import InputError, models
from .files import Lock, part_of, whole
from .models import Model

CONFIG, METRICS, WEIGHTS, SUMMARY, SETTINGS, EVALUATION = (
    "config.json",
    "metrics.csv",
    "weights.safetensors",
    "summary.json",
    "settings.yaml",
    "evaluation.json",
)
CHECKPOINTS, LAST, PREVIOUS, BEST = "checkpoints", "last.ckpt", "previous.ckpt", "best.ckpt"
PICTURES = ("samples.png", "reconstructions.png", "latent_walk.png", "loss.png")
REPORT, HELD_OUT = "report.html", "held_out.npz"
CONTENTS = (CONFIG, METRICS, WEIGHTS, SUMMARY, SETTINGS, EVALUATION, *PICTURES, REPORT, HELD_OUT)
LOCK = ".lock"
# What a lecture keeps to go on with: its claims and models.
PARTS, PART_FILES = "parts", ("claim-*.json", "model-*.pt")


class RunFolder:
    """A run's folder, held by this process until `close`; never over another run unless told to.

    Every file is written beside its place and renamed, so that a process that is killed leaves
    whole files.

    Args:
        path: the folder; made where it is missing.
        overwrite: a run that is there already is removed, its checkpoints too.
        resume: the run that is there is gone on with.
        writes: False in the processes of a run that leave the folder to the first.
        say: gets a line on what a killed process left behind, and on how the run goes.

    Raises:
        InputError: the folder holds a run or other files, there is none to resume, or another
            process is writing into it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        resume: bool = False,
        writes: bool = True,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.path, self._say, self.writes = Path(path), say, writes
        if not writes:
            return
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; give a folder")
        # Before the lock, so that nothing is put where no run is; and again once it is held.
        self._check(overwrite, resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.file(LOCK))
        except OSError as error:
            raise InputError(f"cannot make the folder {self.path}: {error.strerror}") from None
        try:
            self._check(overwrite, resume)
            if self._lock.left_by:
                say(f"{self.path}: process {self._lock.left_by}, which wrote here, did not finish")
            for name in (*CONTENTS, *(f"{CHECKPOINTS}/{name}" for name in (LAST, PREVIOUS, BEST))):
                part_of(self.file(name)).unlink(missing_ok=True)
            if overwrite and not resume:
                self._remove_run()
        except BaseException:
            self.close()
            raise

    def _check(self, overwrite: bool, resume: bool) -> None:
        is_run = self.file(CONFIG).exists()
        if resume:
            if not is_run:
                raise InputError(f"{self.path} holds no run to resume: {CONFIG} is missing")
        elif self.path.is_dir() and not (overwrite and is_run):
            # What a run leaves that was killed before its configuration was written.
            empty = {LOCK, *(part_of(self.file(name)).name for name in CONTENTS)}
            if any(file.name not in empty for file in self.path.iterdir()):
                what = "holds a run already" if is_run else "is not empty, and holds no run"
                ways = "give another folder" + (", or --overwrite" if is_run else "")
                raise InputError(f"{self.path} {what}; {ways}")

    def _remove_run(self) -> None:
        # The checkpoints first: a run that is killed before its own must not resume from them. The
        # configuration is left to be replaced: without it, nothing says that the folder is a run's.
        for name in (LAST, PREVIOUS, BEST):
            (self.file(CHECKPOINTS) / name).unlink(missing_ok=True)
        for pattern in PART_FILES:
            for file in self.file(PARTS).glob(pattern):
                file.unlink(missing_ok=True)
        for name in CONTENTS:
            if name != CONFIG:
                self.file(name).unlink(missing_ok=True)

    def close(self) -> None:
        """Lets other processes have the folder."""
        if self.writes:
            self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Tells the user."""
        self._say(text)

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes a mapping as JSON."""
        self._replace(name, (json.dumps(values, indent=2) + "\n").encode())

    def read_config(self) -> dict[str, Any]:
        """config.json as it was written.

        Raises:
            InputError: it cannot be read.
        """
        return read_config(self.path)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text."""
        self._replace(name, text.encode())

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Appends one row to metrics.csv; it is there for others when this returns."""
        if not self.writes:
            return
        try:
            before = self.file(METRICS).read_text()
        except FileNotFoundError:
            before = ""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), lineterminator="\n")
        if not before:
            writer.writeheader()
        writer.writerow(row)
        self._replace(METRICS, (before + text.getvalue()).encode())

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; a last one that was cut off is left out, and said.

        Raises:
            InputError: another row cannot be read.
        """
        try:
            lines = self.file(METRICS).read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except ValueError:
            raise InputError(f"{self.file(METRICS)} is not text") from None
        if lines and not lines[-1].endswith("\n"):
            self._say(f"{self.file(METRICS)}: the last row was cut off, and is left out")
            lines.pop()
        rows: list[dict[str, float]] = []
        for number, row in enumerate(csv.DictReader(lines), 2):
            try:
                rows.append({name: float(value) for name, value in row.items()})
            except (TypeError, ValueError):
                raise InputError(f"{self.file(METRICS)}, line {number}: cannot be read") from None
        return rows

    def keep_metrics(self, steps: int) -> None:
        """Drops the rows after so many steps, which a resumed run will write anew."""
        rows = [row for row in self.read_metrics() if row["step"] <= steps]
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({**row, "epoch": int(row["epoch"]), "step": int(row["step"])})
        self._replace(METRICS, text.getvalue().encode())

    def write_weights(self, model: Model) -> None:
        """Writes the model's weights as safetensors."""
        from safetensors.torch import save

        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        self._replace(WEIGHTS, save(state))

    def _replace(self, name: str, content: bytes) -> None:
        if not self.writes:
            return
        with whole(self.file(name)) as part:
            part.write_bytes(content)


def load(path: str | Path) -> Model:
    """The trained model of a run folder, on the CPU.

    It has `encode(x)`, `reconstruct(x)`, `sample(count)`, `decode(z)`, `log_prior(z)`, and
    `log_weights(x, k)`, which `vf.log_marginal` takes.

    Raises:
        InputError: the folder holds no run, or one that cannot be read; or the model is a
            plugin's: import that first.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).exists()]
    if missing:
        raise InputError(f"{path} holds no finished run: {' and '.join(missing)} missing")
    config = read_config(path)
    if not isinstance(config.get("model"), dict):
        raise InputError(f"{path / CONFIG} describes no model")
    try:
        model = models.build(**config["model"])
    except TypeError as error:
        raise InputError(f"{path / CONFIG} describes no model: {error}") from None
    try:
        model.load_state_dict(load_file(path / WEIGHTS))
    except SafetensorError as error:
        raise InputError(f"{path / WEIGHTS} cannot be read: {error}") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path / WEIGHTS} are not of the model that {CONFIG} describes, as this version "
            f"builds it: {reason[:200]}"
        ) from None
    return model.eval().requires_grad_(False).to(torch.get_default_dtype())


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run folder.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a mapping, got {type(config).__name__}")
    return config
