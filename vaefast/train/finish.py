"""What a run leaves behind: the demo and `vaefast train` end with the same files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _info, backends
from ..report import keep_held_out, write_report
from .data import Samples
from .models import Model
from .objectives import Objective, held_out_elbo
from .pictures import draw_all, save_curves
from .run_folder import CONFIG, SUMMARY, RunFolder


def write_config(
    run: RunFolder,
    command: str,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    device: torch.device,
    **more: Any,
) -> None:
    """Writes config.json: enough to build the model again, and to know what made it."""
    facts = _info.info()
    run.write_json(
        CONFIG,
        {
            "command": command,
            "model": dict(model),
            "training": dict(training),
            **more,
            "device": device.type,
            "backend": backends.select(device.type),
            "versions": {name: facts[name] for name in ("vaefast", "torch", "python")},
        },
    )


def write_results(
    run: RunFolder,
    model: Model,
    held_out: Tensor | Samples,
    seed: int,
    summary: Mapping[str, Any],
    labels: Tensor | np.ndarray | None = None,
) -> list[str]:
    """Writes weights, summary, pictures and the report; the names of the pictures."""
    run.write_weights(model)
    run.write_json(SUMMARY, summary)
    names = draw_all(run.path, model, held_out[:24], seed)
    rows = run.read_metrics()
    if rows:
        save_curves(run.file("loss.png"), rows)
        names.append("loss.png")
    keep_held_out(run, model, held_out, labels)
    write_report(run)
    return names


def measure(
    model: Model,
    held_out: Tensor | Samples,
    seed: int,
    *,
    autoencoder: bool = False,
    objective: Objective | None = None,
) -> dict[str, float]:
    """The held-out ELBO and its parts, in nats per sample."""
    found = held_out_elbo(
        model,
        held_out if isinstance(held_out, Tensor) else held_out.batches(256),
        seed=seed,
        autoencoder=autoencoder,
        objective=objective,
    )
    return {"elbo": -found.loss.item(), "nll": found.nll.item(), "kl": found.kl.item()}
