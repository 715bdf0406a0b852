"""Tables of text: .csv and .tsv, gzipped or not."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import InputError, cache
from .cache import Source, write_rows

# What text becomes: about so many times smaller as float32.
_TEXT = 2
# Of a gzipped file, how much larger its content may be.
_GZIPPED = 8


def read(source: Source) -> np.ndarray:
    """The numbers of a table `[N, D]`, with or without a line of names."""
    path = source.path
    zipped = path.suffix.lower() == ".gz"
    opened: Callable[..., Any] = gzip.open if zipped else open
    with opened(path, "rt", newline="") as file:
        first = file.readline()
        second = file.readline()
    if not first.strip():
        raise InputError(f"{path} is empty")
    tab = ".tsv" in (suffix.lower() for suffix in path.suffixes)
    delimiter = "\t" if tab else max(",;\t", key=first.count)
    names = next(csv.reader([first], delimiter=delimiter))
    header, columns = not all(map(_is_number, names)), len(names)
    if header and second.strip():
        row = next(csv.reader([second], delimiter=delimiter))
        # Row names may have no name of their own.
        columns = len(row)
        for place, (name, value) in enumerate(zip(names, row, strict=False)):
            if not _is_number(value):
                raise InputError(
                    f"{path}: column {place + 1} ({name!r}) holds {value!r}: all columns must be "
                    "numbers"
                )
    if header and not second.strip():
        raise InputError(f"{path} holds no numbers")

    def blocks() -> Iterator[np.ndarray]:
        with opened(path, "rt", newline="") as file:
            number = 1
            while lines := file.readlines(cache.PART):
                skipped = int(header and number == 1)
                block = list(enumerate(lines, number))[skipped:]
                number += len(lines)
                yield _table(path, block, delimiter, columns)

    size = path.stat().st_size * (_GZIPPED if zipped else 1) / _TEXT
    mapped = source.decoded(size, "table", lambda part: write_rows(part, blocks()))
    found: np.ndarray = np.concatenate(list(blocks())) if mapped is None else mapped
    return found


def _table(path: Path, lines: list[tuple[int, str]], delimiter: str, columns: int) -> np.ndarray:
    """Rows of numbers from numbered lines, of which empty ones say nothing."""
    kept = [(number, line) for number, line in lines if line.strip()]
    if not kept:
        return np.empty((0, columns), np.float32)
    try:
        rows: np.ndarray = np.loadtxt(
            [line for _, line in kept], np.float32, delimiter=delimiter, ndmin=2, quotechar='"'
        )
        if rows.shape[1] == columns:
            return rows
    except ValueError:
        pass
    for number, line in kept:
        values = next(csv.reader([line], delimiter=delimiter))
        if len(values) != columns:
            raise InputError(
                f"{path} could not be read: line {number} has {len(values)} columns, not {columns}"
            )
        wrong = next((value for value in values if not _is_number(value)), None)
        if wrong is not None:
            raise InputError(f"{path} could not be read: line {number} holds {wrong!r}")
    raise InputError(f"{path} could not be read: lines {kept[0][0]} to {kept[-1][0]}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
