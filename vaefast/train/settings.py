"""Every setting of a run: a YAML file, what the command line says of it, and what a run keeps.

Five sections: `data`, `model`, `likelihood`, `objective` and `training`. What the first, `name`,
of the middle three is says which other settings there are.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import math
import sys
import traceback
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import InputError, models
from .models.head import likelihood_kinds, likelihood_settings
from .objectives._base import OBJECTIVES

Settings = dict[str, dict[str, Any]]

SECTIONS = ("data", "model", "likelihood", "objective", "training")
NAMES = {"model": "vae", "likelihood": "bernoulli", "objective": "elbo"}
DATA: dict[str, tuple[Any, Any]] = {
    "path": (str, "digits"),
    "key": (str | None, None),
    "labels": (str | None, None),
    "size": (list | None, None),
    "fit": (str, "crop"),
    "colour": (str | None, None),
    "broken": (str, "fail"),
    "held_out": (float, 0.1),
}
TRAINING: dict[str, tuple[Any, Any]] = {
    "epochs": (int, 20),
    "batch_size": (int, 128),
    "lr": (float, 1e-3),
    "warmup": (int, 0),
    "seed": (int, 0),
    "clip": (float | None, None),
    "precision": (str, "32-true"),
    "accelerator": (str, "auto"),
    "devices": (int, 1),
    "nodes": (int, 1),
    "strategy": (str, "auto"),
    "threads": (int | None, None),
    "tensorboard": (bool, False),
}
_CHOICES = {
    "data.fit": ("crop", "resize"),
    "data.colour": ("grey", "rgb"),
    "data.broken": ("fail", "skip"),
}
_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "warmup": 0,
    "seed": 0,
    "devices": 1,
    "nodes": 1,
    "threads": 1,
}
# What the run says of the data, not the user.
_DERIVED = ("shape", "scale", "likelihood", "likelihood_settings")


def load_plugin(path: str) -> None:
    """Imports a Python file, or a module by its name, which registers what it brings.

    Raises:
        InputError: there is no such file or module, or it fails; the message names the line.
    """
    file = Path(path)
    if file.suffix == ".py" and not file.is_file():
        raise InputError(f"plugin {path} does not exist")
    try:
        if file.suffix != ".py":
            importlib.import_module(path)
            return
        name = f"vaefast_plugin_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"plugin {path}: {error}") from None
    except Exception as error:
        if isinstance(error, SyntaxError):
            where, line = error.filename, error.lineno
        else:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where, line = last.filename, last.lineno
        raise InputError(
            f"plugin {path}: {type(error).__name__}: {error} ({where}, line {line})"
        ) from error


def read_yaml(path: Path) -> Settings:
    """The sections of a YAML file; a section that is a string is its `name`.

    Raises:
        InputError: it is missing, or is no mapping of sections.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    return sections(found if found is not None else {}, str(path))


def sections(found: Any, where: str) -> Settings:
    """A mapping of sections in its long form."""
    if not isinstance(found, Mapping):
        raise InputError(f"{where} must hold a mapping, got {type(found).__name__}")
    result: Settings = {}
    for section, values in found.items():
        if section not in SECTIONS:
            raise InputError(
                f"{where}: section must be one of {', '.join(SECTIONS)}, got {section!r}"
            )
        if isinstance(values, str) and section in NAMES:
            values = {"name": values}
        if not isinstance(values, Mapping):
            raise InputError(f"{where}: {section} must be a mapping, got {values!r}")
        result[section] = {str(name): value for name, value in values.items()}
    return result


def parse_sets(given: Sequence[str]) -> Settings:
    """`section.name=value` of the command line; a value is YAML.

    Raises:
        InputError: one is not of this form.
    """
    import yaml

    result: Settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        section, dot, name = name.strip().partition(".")
        if not equals or not dot or section not in SECTIONS:
            raise InputError(
                f"--set takes SECTION.NAME=VALUE with SECTION one of {', '.join(SECTIONS)}, got "
                f"{text!r}"
            )
        try:
            result.setdefault(section, {})[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {text}: {value!r} is no YAML value") from None
    return result


def merged(*layers: Settings) -> Settings:
    """All settings with their defaults; later layers go before earlier ones. Where a layer names
    another model, likelihood or objective, what earlier ones said of the old one's own is left.

    Raises:
        InputError: a name or a setting is unknown, or a value is not of its type.
    """
    given: Settings = {section: {} for section in SECTIONS}
    for layer in layers:
        for section, values in layer.items():
            before = given[section].get("name", NAMES.get(section))
            if section in NAMES and values.get("name", before) != before:
                kept = known(section, values["name"])
                given[section] = {k: v for k, v in given[section].items() if k in kept}
            given[section].update(values)
    result: Settings = {}
    for section in SECTIONS:
        values = given[section]
        name = values.get("name", NAMES.get(section))
        accepted = known(section, name)
        result[section] = {"name": name} if section in NAMES else {}
        result[section] |= {key: default for key, (_, default) in accepted.items()}
        for key, value in values.items():
            if key == "name" and section in NAMES:
                continue
            if key not in accepted:
                of = f" of {name}" if section in NAMES else ""
                raise InputError(
                    f"{section}.{key} is no setting{of}; there are {', '.join(accepted) or 'none'}"
                )
            result[section][key] = _typed(f"{section}.{key}", value, accepted[key][0])
    for key, least in _LEAST.items():
        value = result["training"][key]
        if value is not None and value < least:
            raise InputError(f"training.{key} must be at least {least}, got {value}")
    for key in ("lr", "clip"):
        value = result["training"][key]
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"training.{key} must be positive and finite, got {value}")
    if not 0 <= result["data"]["held_out"] <= 0.9:
        raise InputError(f"data.held_out must be in [0, 0.9], got {result['data']['held_out']}")
    if (arch := result["model"]["arch"]) not in models.backbones():
        raise InputError(f"model.arch must be one of {', '.join(models.backbones())}, got {arch!r}")
    for dotted, choices in _CHOICES.items():
        section, key = dotted.split(".")
        value = result[section][key]
        if value is not None and value not in choices:
            raise InputError(f"{dotted} must be one of {', '.join(choices)}, got {value!r}")
    size = result["data"]["size"]
    if size is not None and not (
        len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)
    ):
        raise InputError(f"data.size must be [height, width], got {size}")
    return result


def known(section: str, name: str | None) -> dict[str, tuple[Any, Any]]:
    """The settings of a section, each with its type and default.

    Raises:
        InputError: there is no model, likelihood or objective of this name.
    """
    if section == "data":
        return DATA
    if section == "training":
        return TRAINING
    assert name is not None
    if section == "likelihood":
        kinds = likelihood_kinds(name)
        return {key: (kinds[key], value) for key, value in likelihood_settings(name).items()}
    if section == "objective":
        found = OBJECTIVES.find(name)
        hints = typing.get_type_hints(found)
        return {f.name: (hints[f.name], f.default) for f in fields(found)}
    return {
        key: (_annotation(p), None if p.default is inspect.Parameter.empty else p.default)
        for key, p in models.settings_of(name).items()
        if key not in _DERIVED
    } | {"input": (str | None, None)}


def _annotation(parameter: inspect.Parameter) -> Any:
    """The type of a setting; a plain one where the annotation is a string that says so."""
    plain = {"int": int, "float": float, "str": str, "bool": bool}
    text = str(parameter.annotation)
    name, _, rest = text.partition(" | ")
    if name not in plain or rest not in ("", "None"):
        return Any
    return plain[name] | None if rest else plain[name]


def _typed(name: str, value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    kinds = (
        typing.get_args(kind) if typing.get_origin(kind) is not None or _union(kind) else (kind,)
    )
    if typing.get_origin(kind) is typing.Literal:
        if value not in kinds:
            raise InputError(f"{name} must be one of {', '.join(kinds)}, got {value!r}")
        return value
    if value is None and type(None) in kinds:
        return None
    if bool in kinds and isinstance(value, bool):
        return value
    number = _number(value) if float in kinds and not isinstance(value, bool) else None
    if number is not None:
        if math.isnan(number):
            raise InputError(f"{name} must be a number, got nan")
        return number
    if int in kinds and isinstance(value, int) and not isinstance(value, bool):
        return value
    if list in kinds and isinstance(value, (list, tuple)):
        return list(value)
    if str in kinds and isinstance(value, str):
        return value
    words = {int: "an integer", float: "a number", str: "a word", bool: "true or false"}
    taken = " or ".join(words.get(k, "null" if k is type(None) else "a list") for k in kinds)
    raise InputError(f"{name} must be {taken}, got {value!r}")


def _union(kind: Any) -> bool:
    return bool(typing.get_args(kind))


def _number(value: Any) -> float | None:
    """A number, or a word that is one: YAML reads 1e-3 as a word."""
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError):
        return None


def to_yaml(settings: Settings) -> str:
    """The settings as a file that `--config` takes."""
    import yaml

    plain = copy.deepcopy(settings)
    text: str = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)
    return text


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config.json as this version writes it; `old` is True where an older one did, whose
    models began with no knowledge of the data."""
    if "objective" in config:
        return dict(config)
    training = dict(config.get("training", {}))
    name = "autoencoder" if training.get("autoencoder") else "elbo"
    objective = {"name": name}
    if name == "elbo":
        objective["beta"] = training.get("beta", 1.0)
    return {**config, "objective": objective, "old": True}


def of_run(config: Mapping[str, Any]) -> Settings:
    """The settings of a run of `vaefast train`, from its config.json.

    Raises:
        InputError: it lacks something.
    """
    model, training = config.get("model", {}), config.get("training", {})
    if not isinstance(model, dict) or not isinstance(training, dict):
        raise InputError("the run's config.json describes no model and training")
    lacking = ({"shape", "latent", "likelihood", "arch", "width"} - model.keys()) | (
        {"warmup", "lr", "batch_size", "held_out", "seed", "data_sha256"} - training.keys()
    )
    if lacking:
        raise InputError(f"the run's config.json lacks {', '.join(sorted(lacking))}")
    if isinstance(config.get("settings"), dict):
        return sections(config["settings"], "the run's config.json")
    config = upgraded(config)
    own = {k: v for k, v in model.items() if k not in _DERIVED}
    return merged(
        {
            "data": {"held_out": training["held_out"]},
            "model": own,
            "likelihood": {"name": model["likelihood"]},
            "objective": dict(config["objective"]),
            "training": {k: training[k] for k in ("warmup", "lr", "batch_size", "seed")},
        }
    )
