"""Sparse matrices of files, by rows: in memory where small, else in memory-mapped files."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from . import InputError
from .cache import Source


@dataclass(frozen=True)
class Stored:
    """A sparse matrix as a file has it.

    Args:
        form: `"csr"`, `"csc"` or `"coo"`.
        shape: `[N, D]`.
        count: stored values.
        dtype: theirs.
        whole: an array of the file by its name, in memory or mapped.
        blocks: the same, so many elements at a time.
    """

    form: str
    shape: tuple[int, ...]
    count: int
    dtype: np.dtype
    whole: Callable[[str], np.ndarray]
    blocks: Callable[[str, int], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Rows:
    """A matrix `[N, D]` by rows (CSR): row i has `data` in the columns `indices`, from
    `indptr[i]` to `indptr[i + 1]`.

    scipy's own class would bring `indices` and `indptr` to one dtype, in memory.
    """

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, ...]


# Stored values that are looked at at a time.
_PART = 1 << 18
# Bytes of stored values that are put in order at a time.
_SORTED = 64 << 20


def take(matrix: Any, rows: np.ndarray) -> np.ndarray:
    """Some rows `[len(rows), D]`, of `Rows` or of scipy's CSR matrix, dense: uint8 and bool as
    they are, all else float32. What is stored twice at one place is added up."""
    from scipy.sparse import csr_matrix

    begin = np.asarray(matrix.indptr[rows], np.int64)
    counts = np.asarray(matrix.indptr[rows + 1], np.int64) - begin
    indptr = np.concatenate([[0], np.cumsum(counts)])
    places = np.repeat(begin - indptr[:-1], counts) + np.arange(indptr[-1])
    values = matrix.data[places]
    if values.dtype not in (np.uint8, np.bool_):
        values = values.astype(np.float32)
    parts = values, matrix.indices[places], indptr
    dense: np.ndarray = csr_matrix(parts, shape=(len(rows), matrix.shape[1])).toarray()
    return dense


def read(source: Source, stored: Stored, what: str) -> Rows:
    """The matrix by rows. By columns, or in no order, it is turned: in memory where it is small,
    else once into a mapped file.

    Args:
        what: which matrix of the file.

    Raises:
        InputError: it is none of real numbers, a place is outside of it, or its arrays do not fit
            together.
    """
    try:
        return _read(source, stored, what)
    except InputError as error:
        raise InputError(f"{source.path} {error}") from None


def _read(source: Source, stored: Stored, what: str) -> Rows:
    if len(stored.shape) != 2 or 0 in stored.shape:
        raise InputError(f"must hold [N, D], got {list(stored.shape)}")
    if stored.dtype.kind not in "buif":
        raise InputError(f"must hold real numbers, got {stored.dtype}")
    if stored.form == "csr":
        data, indices, indptr = map(stored.whole, ("data", "indices", "indptr"))
        return _checked(Rows(data, indices, indptr, stored.shape))
    layout = _Layout(stored)
    mapped = source.decoded(layout.size, f"{what} by rows", lambda to: _turn(stored, layout, to))
    return _in_memory(stored, layout) if mapped is None else layout.rows(mapped)


def _checked(rows: Rows) -> Rows:
    """Raises InputError where a place is outside: what makes them dense looks at nothing."""
    _check_pointers(rows.indptr, rows.shape[0], len(rows.data), len(rows.indices))
    for start in range(0, len(rows.indices), _PART):
        _check_places(rows.indices[start : start + _PART], rows.shape[1])
    return rows


def _check_pointers(indptr: np.ndarray, size: int, *counts: int) -> None:
    if indptr.dtype.kind not in "iu":
        raise InputError(f"could not be read: indptr must hold integers, got {indptr.dtype}")
    whole = len(indptr) == size + 1 and indptr[0] == 0 and bool((np.diff(indptr) >= 0).all())
    if not whole or any(count != indptr[-1] for count in counts):
        raise InputError("could not be read: indptr does not fit the shape and the values")


def _check_places(places: np.ndarray, size: int) -> None:
    if places.dtype.kind not in "iu":
        raise InputError(f"could not be read: indices must hold integers, got {places.dtype}")
    if len(places) and not (places.min() >= 0 and places.max() < size):
        raise InputError(f"could not be read: an index is outside of [0, {size})")


def _entries(stored: Stored) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, columns and values, a part at a time, each place within the matrix."""
    if stored.form == "coo":
        for rows, columns, values in _together(stored, "row", "col", "data"):
            _check_places(rows, stored.shape[0])
            _check_places(columns, stored.shape[1])
            yield rows, columns, values
        return
    indptr, start = np.concatenate(list(stored.blocks("indptr", _PART))), 0
    _check_pointers(indptr, stored.shape[1], stored.count)
    for rows, values in _together(stored, "indices", "data"):
        _check_places(rows, stored.shape[0])
        places = np.arange(start, start + len(rows))
        yield rows, np.searchsorted(indptr, places, "right") - 1, values
        start += len(rows)


def _together(stored: Stored, *names: str) -> Iterator[tuple[np.ndarray, ...]]:
    """Arrays of the same length, a part at a time."""
    blocks = (stored.blocks(name, _PART) for name in names)
    for parts in zip_longest(*blocks, fillvalue=np.empty(0)):
        if len({len(part) for part in parts}) > 1:
            raise InputError(f"could not be read: {', '.join(names)} must be of one length")
        yield parts


def _ordered(rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """The three by rows, and in them by columns. Where a place comes twice, the first has the sum,
    the others 0."""
    order = np.lexsort((columns, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1])
    if not first.all():
        starts = np.flatnonzero(first)
        sums = np.add.reduceat(values, starts, dtype=values.dtype)
        values = np.zeros_like(values)
        values[starts] = sums
    return rows, columns, values


def _in_memory(stored: Stored, layout: _Layout) -> Rows:
    none = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, stored.dtype)
    parts = [none, *_entries(stored)]
    rows, columns, values = _ordered(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    indptr = np.searchsorted(rows, np.arange(stored.shape[0] + 1))
    kinds = layout.dtypes
    return Rows(
        values.astype(kinds["data"]), columns.astype(kinds["indices"]), indptr, stored.shape
    )


class _Layout:
    """One file for the three arrays of a matrix by rows, each from a multiple of 64 bytes on."""

    def __init__(self, stored: Stored) -> None:
        self.shape, self.count = stored.shape, stored.count
        narrow = max(stored.shape[1], stored.count) < 2**31
        self.dtypes = {
            "indptr": np.dtype(np.int64),
            "data": stored.dtype.newbyteorder("="),
            "indices": np.dtype(np.int32 if narrow else np.int64),
        }
        self.counts = {"indptr": stored.shape[0] + 1, "data": self.count, "indices": self.count}
        self.begin, self.size = {}, 0
        for name, dtype in self.dtypes.items():
            self.begin[name] = self.size
            self.size += -(-self.counts[name] * dtype.itemsize // 64) * 64

    def rows(self, mapped: np.ndarray) -> Rows:
        """The arrays in the file's bytes."""
        found = {
            name: mapped[begin : begin + self.counts[name] * self.dtypes[name].itemsize].view(
                self.dtypes[name]
            )
            for name, begin in self.begin.items()
        }
        return Rows(found["data"], found["indices"], found["indptr"], self.shape)


def _turn(stored: Stored, layout: _Layout, path: Path) -> None:
    """Writes the matrix by rows as the bytes of a .npy file.

    Twice through the values: first each goes into the part of the file in which its row will be,
    then each part, which fits into memory, is put in order.
    """
    indptr = np.zeros(stored.shape[0] + 1, np.int64)
    for rows, _, _ in _entries(stored):
        np.add.at(indptr, rows.astype(np.int64) + 1, 1)
    np.cumsum(indptr, out=indptr)
    widths = {"data": layout.dtypes["data"], "indices": layout.dtypes["indices"]}
    widths["row"] = np.dtype(np.int64)
    most = max(1, _SORTED // sum(dtype.itemsize for dtype in widths.values()))
    # Where a row begins says which part it is in; of an empty last row, the part before.
    part_of = np.minimum(indptr[:-1], max(0, stored.count - 1)) // most
    first = np.searchsorted(part_of, np.arange(math.ceil(stored.count / most) + 1))
    begin = indptr[first]
    with path.open("w+b") as file, tempfile.TemporaryFile(dir=path.parent) as aside:
        header = {"descr": "|u1", "fortran_order": False, "shape": (layout.size,)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + layout.size)
        file.seek(start + layout.begin["indptr"])
        file.write(indptr.data)
        files = {
            "data": (file, start + layout.begin["data"]),
            "indices": (file, start + layout.begin["indices"]),
            "row": (aside, 0),
        }

        def put(name: str, place: int, values: np.ndarray) -> None:
            to, offset = files[name]
            to.seek(offset + place * widths[name].itemsize)
            to.write(np.ascontiguousarray(values, widths[name]).data)

        def get(name: str, place: int, count: int) -> np.ndarray:
            of, offset = files[name]
            of.seek(offset + place * widths[name].itemsize)
            return np.frombuffer(of.read(count * widths[name].itemsize), widths[name])

        filled = begin.copy()
        for rows, columns, values in _entries(stored):
            parts = part_of[rows]
            order = np.argsort(parts, kind="stable")
            found, counts = np.unique(parts, return_counts=True)
            for part, some in zip(found, np.split(order, np.cumsum(counts)[:-1]), strict=True):
                place = int(filled[part])
                put("data", place, values[some])
                put("indices", place, columns[some])
                put("row", place, rows[some])
                filled[part] += len(some)
        for place, end in zip(begin[:-1].tolist(), begin[1:].tolist(), strict=True):
            entries = (get(name, place, end - place) for name in ("row", "indices", "data"))
            _, columns, values = _ordered(*entries)
            put("indices", place, columns)
            put("data", place, values)
