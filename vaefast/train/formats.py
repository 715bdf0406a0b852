"""Files of data: what each format's reader gives is an array `[N, ...]` or a sparse matrix.

Arrays that are stored as they are used are memory-mapped, not read. What has to be decoded (text,
compressed arrays) is read into memory up to `cache.LIMIT`, and above it decoded once, a part at a
time, into a memory-mapped file.
"""

from __future__ import annotations

import contextlib
import gzip
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import InputError, annotated, cache, sparse, tables
from .cache import Source, write_rows

Array = Any
_IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NUMPY, _ZIP, _GZIP = b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b"


def read(
    path: Path,
    key: str | None = None,
    *,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> np.ndarray | Tensor | sparse.Rows:
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
        found: np.ndarray | Tensor | sparse.Rows = reader(Source(path, key, cache, say))
        return found
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


def _npz(source: Source) -> np.ndarray | sparse.Rows:
    path = source.path
    if not _starts(path, _ZIP):
        raise InputError(f"{path} could not be read: it does not begin as a .npz file does")
    with _no_objects(path), np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.keys())
        if source.key is None and {"format", "shape", "data"} <= set(names):
            return _sparse_npz(source, arrays)
        return _member(source, arrays, choose(path, names, source.key))


def _sparse_npz(source: Source, arrays: Any) -> sparse.Rows:
    """A matrix that scipy's `save_npz` wrote."""
    form = str(arrays["format"].item(), "ascii")
    shape = tuple(int(n) for n in arrays["shape"])
    if len(shape) != 2:
        raise InputError(f"{source.path} must hold [N, D], got {list(shape)}")
    if form not in ("csr", "csc", "coo"):
        from scipy.sparse import load_npz

        made = load_npz(source.path).tocsr()
        taken = partial(getattr, made)
        stored = sparse.Stored("csr", shape, made.nnz, made.dtype, taken, lambda *_: iter(()))
        return sparse.read(source, stored, "matrix")

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[tuple[Any, np.dtype, int]]:
        with arrays.zip.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            readers = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            (count,), _, dtype = readers[version](file)
            if dtype.hasobject:
                raise ValueError("Python objects")
            yield file, dtype, count

    def blocks(name: str, count: int) -> Iterator[np.ndarray]:
        with opened(name) as (file, dtype, left):
            while left:
                some = min(count, left)
                yield np.frombuffer(file.read(some * dtype.itemsize), dtype, some)
                left -= some

    with opened("data") as (_, dtype, count):
        pass
    stored = sparse.Stored(
        form, shape, count, dtype, lambda name: _member(source, arrays, name), blocks
    )
    return sparse.read(source, stored, "matrix")


def _member(source: Source, arrays: Any, name: str) -> np.ndarray:
    """An array of an opened .npz, each of which is a .npy file."""
    packed = arrays.zip
    info = packed.getinfo(name if name in packed.namelist() else f"{name}.npy")

    def unpack(part: Path) -> None:
        with packed.open(info) as file, part.open("wb") as to:
            shutil.copyfileobj(file, to, cache.PART)
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
        value = tensors[choose(path, list(tensors), source.key)]
    if not isinstance(value, Tensor):
        raise InputError(f"{path} must hold a Tensor, got {type(value).__name__}")
    kinds = {"quantized": value.is_quantized, "nested": value.is_nested, "meta": value.is_meta}
    kind = next((name for name, found in kinds.items() if found), value.layout)
    if kind != torch.strided:
        raise InputError(f"{path} must hold a dense tensor, got {kind}")
    return value.detach().resolve_neg()


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
            while part := file.read(cache.PART):
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
    ".csv": tables.read,
    ".tsv": tables.read,
    ".h5ad": annotated.read,
}
