"""A run's checkpoints: the last, the one before it, and the best, each a whole file."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.io import TorchCheckpointIO

from . import InputError
from .files import whole
from .run_folder import BEST, CHECKPOINTS, LAST, PREVIOUS, RunFolder


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
        if path.name == LAST:
            _keep_previous(path.parent)
        with whole(path, sync=True) as part:
            part.write_bytes(content.getbuffer())


def keep(fabric: Fabric, folder: Path, state: dict[str, Any], *, best: bool = False) -> None:
    """Saves the state as the last checkpoint, and before that as the best where it is."""
    if not best:
        fabric.save(folder / LAST, state)
        return
    fabric.save(folder / BEST, state)
    if fabric.is_global_zero:
        # The same file by another name: neither is ever written to.
        _keep_previous(folder)
        with whole(folder / LAST) as part:
            _link(folder / BEST, part)


def _keep_previous(folder: Path) -> None:
    if (folder / LAST).exists():
        with whole(folder / PREVIOUS) as part:
            _link(folder / LAST, part)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, one that an older version wrote by Lightning's Trainer too."""
    # `weights_only`: numbers and tensors are all that these checkpoints hold.
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    kept: Mapping[str, Any] = found.get("vaefast", {})
    found["vaefast"] = {"skipped": 0, "best": float("inf"), "sums": {}, **kept}
    found.setdefault("precision", {})
    if "optimizer" not in found:
        found["optimizer"] = found["optimizer_states"][0]
        loops = found["loops"]["fit_loop"]
        found["epoch"] = loops["epoch_progress"]["current"]["processed"]
        batches = loops["epoch_loop.batch_progress"]
        found["begun"] = 0 if batches["is_last_batch"] else batches["current"]["ready"]
    return found


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
        return int(read(path)["global_step"])
    # A file that was cut off fails in many ways: in zipfile's, pickle's, a missing key.
    except Exception:
        return None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # A file system without links.
        shutil.copyfile(source, target)
