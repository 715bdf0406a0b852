"""What the options of `vaefast train` say, as settings."""

from __future__ import annotations

from typing import Any

from ..train import InputError
from ..train.run_folder import RunFolder
from ..train.settings import Settings, merged, of_run

# Where an option's value belongs among the settings.
_OPTIONS = {
    "key": "data.key",
    "labels": "data.labels",
    "size": "data.size",
    "fit": "data.fit",
    "colour": "data.colour",
    "broken": "data.broken",
    "held_out": "data.held_out",
    "model": "model.name",
    "arch": "model.arch",
    "latent": "model.latent",
    "width": "model.width",
    "depth": "model.depth",
    "likelihood": "likelihood.name",
    "objective": "objective.name",
    "beta": "objective.beta",
    "warmup": "training.warmup",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "lr": "training.lr",
    "seed": "training.seed",
    "clip": "training.clip",
    "precision": "training.precision",
    "accelerator": "training.accelerator",
    "devices": "training.devices",
    "nodes": "training.nodes",
    "strategy": "training.strategy",
    "threads": "training.threads",
    "tensorboard": "training.tensorboard",
}
# What a resumed run may be given anew; all else is the run's.
_FREE = {
    *("training.epochs", "training.accelerator", "training.devices", "training.nodes"),
    *("training.strategy", "training.threads", "training.tensorboard", "data.path", "data.key"),
    "data.labels",
}


def asked_for(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options that were given, as settings."""
    found: dict[str, dict[str, Any]] = {}
    values = {**given, "size": _size(given["size"]), "tensorboard": given["tensorboard"] or None}
    if given["data"] is not None:
        found["data"] = {"path": given["data"]}
    for option, dotted in _OPTIONS.items():
        if values[option] is not None:
            section, name = dotted.split(".")
            found.setdefault(section, {})[name] = values[option]
    return found


def _size(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise InputError(f"--size must be like 64 or 48x64, got {text!r}")
    return [sides[0], sides[-1]]


def resumed(run: RunFolder, layers: list[Settings]) -> Settings:
    """The run's own settings, and what of those given a resumed run may change.

    Raises:
        InputError: something else was given, or the run cannot be resumed.
    """
    config = run.read_config()
    if config.get("command") != "train":
        raise InputError(f"only a run of vaefast train can be resumed, not {config.get('command')}")
    kept = of_run(config)
    if not config.get("settings"):
        run.say(f"{run.path} is of an older version: going on with its settings")
    new = merged(kept, *layers)
    for section, values in new.items():
        for name, value in values.items():
            dotted = f"{section}.{name}"
            if dotted not in _FREE and name in kept[section] and kept[section][name] != value:
                option = next((o for o, where in _OPTIONS.items() if where == dotted), None)
                shown = f"--{option.replace('_', '-')}" if option else dotted
                raise InputError(
                    f"the run has {shown} {kept[section][name]}, got {value}: leave it out"
                )
    return new
