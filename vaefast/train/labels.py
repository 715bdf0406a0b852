"""Labels of the data, which colour the report's map: nothing is trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import InputError
from .annotated import open_h5ad
from .data import DIGITS, load_digits

_FORMATS = "a .npy [N], a text file of one label a line, or a column of a .h5ad's obs"


def load_labels(settings: Mapping[str, Any], count: int) -> np.ndarray | None:
    """The labels `[count]` that a run's section `data` names, numbers or words; the digits have
    theirs; None where there are none.

    Raises:
        InputError: they cannot be read, or are not as many as the samples.
    """
    named, data = settings.get("labels"), str(settings["path"])
    if named is None:
        if data != DIGITS or Path(data).exists():
            return None
        parts = load_digits().labels
        return torch.cat([parts.train, parts.held_out]).numpy()
    path = Path(named)
    if path.exists():
        found = _read(path, count)
    elif Path(data).suffix == ".h5ad":
        found = _column(Path(data), named)
    else:
        raise InputError(f"labels {named} do not exist; they are {_FORMATS}")
    if found.shape != (count,):
        raise InputError(f"labels {named} must be [{count}], one a sample, got {list(found.shape)}")
    return found


def _read(path: Path, count: int) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            array: np.ndarray = np.load(path, allow_pickle=False)
            if array.dtype.kind not in "buifUS":
                raise InputError(f"labels {path} must be numbers or words, got {array.dtype}")
            return array
        lines = [line.strip().strip('"') for line in path.read_text().splitlines()]
    except InputError:
        raise
    except (OSError, ValueError) as error:
        if "object" in str(error).lower():
            raise InputError(
                f"labels {path} must be numbers or words, got Python objects"
            ) from None
        reason = str(error).splitlines()[0]
        raise InputError(f"labels {path} cannot be read: {reason}; they are {_FORMATS}") from None
    if len(lines) == count + 1:
        # The first is the column's name.
        lines = lines[1:]
    return np.array(lines)


def _column(path: Path, name: str) -> np.ndarray:
    with open_h5ad(path) as file:
        columns = file.get("obs", {})
        if name not in columns:
            raise InputError(
                f"{path} has no labels {name!r} in obs; it holds {', '.join(columns) or 'none'}"
            )
        column = columns[name]
        if hasattr(column, "keys"):
            # A categorical: codes, -1 for none, and what they stand for.
            codes = column["codes"][()]
            values = np.append(column["categories"][()], b"")[codes]
        else:
            values = column[()]
    words = [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]
    return np.array([str(v) for v in words] if values.dtype.kind in "OS" else words)
