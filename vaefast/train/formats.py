"""Files of data: what each format's reader gives is an array `[N, ...]` or a sparse matrix.

Arrays that are stored as they are used are memory-mapped, not read. What has to be decoded (text,
compressed arrays) is read into memory up to `LIMIT`, and above it decoded once, a part at a time,
into a memory-mapped file.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _install
from . import InputError
from .cache import cached, digest, file_state, write_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Array = Any
# Bytes of a decoded array above which it is not held in memory, where there is a cache.
LIMIT = 64 << 20
# What text becomes: about so many times smaller as float32.
_TEXT = 2
# Of a gzipped file, how much larger its content may be.
_GZIPPED = 8
# Bytes that are decoded at a time.
_PART = 1 << 20
_IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NUMPY, _ZIP, _GZIP, _HDF5 = b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b", b"\x89HDF\r\n\x1a\n"


class Source(NamedTuple):
    """A file; `key`: which array of it; `cache`: where decoded arrays are kept, None for nowhere;
    `say`: gets a line where they cannot be."""

    path: Path
    key: str | None
    cache: Path | None
    say: Callable[[str], None]

    def decoded(self, size: float, what: str, write: Callable[[Path], object]) -> Array | None:
        """The array that `write` puts into a .npy file, memory-mapped; None where it is small
        enough for memory, or there is no room to keep it.

        Args:
            size: of the array, in bytes, or about.
            what: which array of the file.
        """
        if self.cache is None or size <= LIMIT:
            return None
        return cached(self.cache, digest(file_state(self.path), what), write, self.say)


def read(
    path: Path,
    key: str | None = None,
    *,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> np.ndarray | Tensor | csr_matrix:
    """What the file holds.

    Args:
        key: which array of a file that holds several.
        cache: a folder in which large arrays are kept as they were decoded, and found the next
            time, until the file changes; None: everything is read into memory.
        say: gets a line where that folder cannot be written.

    Raises:
        InputError: the file is missing, broken, or of a format that is not known.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    plain = suffixes[-2] if last == ".gz" and len(suffixes) > 1 else last
    reader = _READERS.get(plain if plain in (".csv", ".tsv") else last)
    try:
        if reader is None and _is_idx(path):
            reader = _idx
        if reader is None:
            raise InputError(f"{path} must be {FORMATS}")
        return reader(Source(path, key, cache, say))
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path} does not fit into memory") from None
    except _BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} could not be read: {reason}") from None


FORMATS = (
    ".npy, .npz, .pt, .csv, .tsv, .h5ad, an IDX file (MNIST's format, gzipped too) or a folder of "
    "images"
)
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    KeyError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


def choose(path: Path, names: list[str], key: str | None) -> str:
    """The array that is meant.

    Raises:
        InputError: it is not there, or `key` is needed.
    """
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        got = "needs --key" if key is None else f"has no array {key!r}"
        raise InputError(f"{path} {got}; it holds {', '.join(map(str, names)) or 'none'}")
    return key


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _npy(source: Source) -> np.ndarray:
    path = source.path
    if not _starts(path, _NUMPY):
        raise InputError(f"{path} could not be read: it does not begin as a .npy file does")
    with _no_objects(path):
        # Copy-on-write: torch wants memory that it could write to.
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


@contextlib.contextmanager
def _no_objects(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "object" not in str(error).lower():
            raise
        raise InputError(f"{path} must hold numbers, got Python objects") from None


def _npz(source: Source) -> np.ndarray | csr_matrix:
    path = source.path
    if not _starts(path, _ZIP):
        raise InputError(f"{path} could not be read: it does not begin as a .npz file does")
    with _no_objects(path), np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.keys())
        if source.key is None and {"format", "shape", "data"} <= set(names):
            from scipy.sparse import csr_matrix, load_npz

            if "indptr" not in names or arrays["format"].item() not in ("csr", b"csr"):
                return load_npz(path).tocsr()
            parts = [_member(source, arrays, name) for name in ("data", "indices", "indptr")]
            return csr_matrix(tuple(parts), shape=tuple(arrays["shape"]))
        return _member(source, arrays, choose(path, names, source.key))


def _member(source: Source, arrays: Any, name: str) -> np.ndarray:
    """An array of an opened .npz, each of which is a .npy file."""
    packed = arrays.zip
    info = packed.getinfo(name if name in packed.namelist() else f"{name}.npy")

    def unpack(part: Path) -> None:
        with packed.open(info) as file, part.open("wb") as to:
            shutil.copyfileobj(file, to, _PART)
        # It ends the run here, where it is named, not as a broken file of the cache.
        np.load(part, mmap_mode="r", allow_pickle=False)

    mapped = source.decoded(info.file_size, name, unpack)
    found: np.ndarray = arrays[name] if mapped is None else mapped
    return found


def _pt(source: Source) -> Tensor:
    path = source.path
    try:
        # A file of an old torch is no zip, and cannot be mapped.
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=_starts(path, _ZIP))
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} could not be read: a .pt file must hold tensors and plain Python values alone"
        ) from None
    if isinstance(value, dict):
        tensors = {k: v for k, v in value.items() if isinstance(v, Tensor)}
        return tensors[choose(path, list(tensors), source.key)]
    if not isinstance(value, Tensor):
        raise InputError(f"{path} must hold a Tensor, got {type(value).__name__}")
    return value


def _csv(source: Source) -> np.ndarray:
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
            while lines := file.readlines(_PART):
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


def _h5ad(source: Source) -> np.ndarray | csr_matrix:
    path = source.path
    with open_h5ad(path) as file:
        name = source.key or "X"
        if name not in file and f"layers/{name}" in file:
            name = f"layers/{name}"
        if name not in file:
            layers = [f"layers/{layer}" for layer in file.get("layers", {})]
            raise InputError(f"{path} has no array {name!r}; it holds {', '.join(['X', *layers])}")
        found = file[name]
        if not hasattr(found, "keys"):
            return _dataset(source, found)
        from scipy.sparse import csc_matrix, csr_matrix

        kind = found.attrs.get("encoding-type", "csr_matrix")
        kinds = {"csr_matrix": csr_matrix, "csc_matrix": csc_matrix}
        if kind not in kinds:
            raise InputError(f"{path}: {name} must be an array or a sparse matrix, got {kind}")
        shape = tuple(found.attrs.get("shape", found.attrs.get("h5sparse_shape", ())))
        parts = tuple(_dataset(source, found[part]) for part in ("data", "indices", "indptr"))
        return kinds[kind](parts, shape=shape).tocsr()


def _dataset(source: Source, found: Any) -> np.ndarray:
    """A dataset of an opened HDF5 file."""

    def blocks() -> Iterator[np.ndarray]:
        rows = max(1, _PART * len(found) // max(1, found.nbytes))
        # Whole chunks: each is unpacked once.
        if found.chunks:
            rows = -(-rows // found.chunks[0]) * found.chunks[0]
        for start in range(0, len(found), rows):
            yield found[start : start + rows]

    mapped, itemsize = None, found.dtype.itemsize
    # 0: a dataset that nothing was written to.
    place: int = (found.id.get_offset() or 0) if found.chunks is None else 0
    plain = place > 0 and place % itemsize == 0 and found.dtype.kind in "buif"
    if found.nbytes > LIMIT and plain and found.file.userblock_size == 0:
        lies: np.ndarray = np.memmap(source.path, found.dtype, "c", place, found.shape)
        return lies
    if found.ndim and len(found):
        mapped = source.decoded(found.nbytes, found.name, lambda part: write_rows(part, blocks()))
    whole: np.ndarray = found[()] if mapped is None else mapped
    return whole


def open_h5ad(path: Path) -> Any:
    """An HDF5 file, to read.

    Raises:
        InputError: it is none, or h5py is missing.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise InputError(f"{path} needs h5py: {_install.command('anndata')}") from None
    if not _starts(path, _HDF5):
        raise InputError(f"{path} could not be read: it does not begin as an HDF5 file does")
    return h5py.File(path, "r")


def _is_idx(path: Path) -> bool:
    if path.is_dir():
        return False
    opened: Callable[..., Any] = gzip.open if _starts(path, _GZIP) else open
    try:
        with opened(path, "rb") as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in _IDX and head[3] > 0


def _idx(source: Source) -> np.ndarray:
    """LeCun's format: two zeros, a type, the number of dimensions, each as a big-endian int32."""
    path = source.path
    zipped = _starts(path, _GZIP)
    opened: Callable[..., Any] = gzip.open if zipped else open
    with opened(path, "rb") as file:
        _, _, kind, dims = file.read(4)
        shape = tuple(int(n) for n in np.frombuffer(file.read(4 * dims), ">i4"))
        offset, size = file.tell(), int(np.prod(shape)) * np.dtype(_IDX[kind]).itemsize
    if not zipped:
        _announced(path, path.stat().st_size - offset, size)
        mapped: np.ndarray = np.memmap(path, _IDX[kind], "c", offset)
        return mapped.reshape(shape)

    def parts() -> Iterator[np.ndarray]:
        held = 0
        with gzip.open(path, "rb") as file:
            file.seek(offset)
            while part := file.read(_PART):
                held += len(part)
                yield np.frombuffer(part, np.uint8)
        _announced(path, held, size)

    kept = source.decoded(size, "idx", lambda part: write_rows(part, parts()))
    array: np.ndarray = np.concatenate([np.empty(0, np.uint8), *parts()]) if kept is None else kept
    return array.view(_IDX[kind]).reshape(shape)


def _announced(path: Path, held: int, size: int) -> None:
    if held != size:
        raise InputError(f"{path} could not be read: {held} bytes of data, {size} announced")


_READERS: dict[str, Callable[[Source], Any]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _pt,
    ".pth": _pt,
    ".csv": _csv,
    ".tsv": _csv,
    ".h5ad": _h5ad,
}
