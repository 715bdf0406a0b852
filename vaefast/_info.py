"""What is installed and what serves: versions, the compiled core, and why a backend is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from . import backends
from .backends.costs import table


def info() -> dict[str, Any]:
    """What this installation is and which backend serves each device.

    Returns:
        A dictionary: versions, `native` (the compiled core's build, or why it is missing),
        `backends` (per device, each backend and why it cannot serve), `serves` (per device the one
        that `auto` takes), `by_cost` (per GPU the operators for which it takes another, as they
        cost less by that) and the settings in force.

    Example:
        >>> "backends" in info()
        True
    """
    devices = ["cpu", *_gpus()]
    return {
        "vaefast": _version("vaefast"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "native": _native(),
        "backends": {
            device: {
                name: backends.unavailable(name, device) or "available"
                for name in ("native", "triton", "reference")
            }
            for device in devices
        },
        "serves": {device: backends.available_backends(device)[0] for device in devices},
        "by_cost": {device: _by_cost(device) for device in devices if device != "cpu"},
        "settings": {k: v for k, v in sorted(os.environ.items()) if k.startswith("VAEFAST_")},
    }


def _gpus() -> list[str]:
    """ "cuda", and each GPU by itself where they are not of one kind."""
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    kinds = {torch.cuda.get_device_capability(index) for index in range(count)}
    return ["cuda", *(f"cuda:{index}" for index in range(count) if len(kinds) > 1)]


def _by_cost(device: str) -> dict[str, str]:
    first, *others = backends.available_backends(device)
    costs = table().items()
    return {str(kind): cost.chosen for kind, cost in costs if first != cost.chosen in others}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _native() -> dict[str, Any]:
    try:
        from . import _C
    except ImportError as error:
        return {"missing": str(error)}
    return {**_C.build_info(), "cpu_capability": _C.cpu_capability()}
