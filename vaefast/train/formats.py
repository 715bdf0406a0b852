"""Files of data: what each format's reader gives is an array `[N, ...]` or a sparse matrix.

Arrays that are stored as they are used are memory-mapped, not read.
"""

from __future__ import annotations

import csv
import gzip
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import _install
from . import InputError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Array = Any
_IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NUMPY, _ZIP, _GZIP, _HDF5 = b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b", b"\x89HDF\r\n\x1a\n"


def read(path: Path, key: str | None = None) -> np.ndarray | Tensor | csr_matrix:
    """What the file holds.

    Args:
        key: which array of a file that holds several.

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
        return reader(path, key)
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


def _npy(path: Path, key: str | None) -> np.ndarray:
    if not _starts(path, _NUMPY):
        raise InputError(f"{path} could not be read: it does not begin as a .npy file does")
    try:
        # Copy-on-write: torch wants memory that it could write to.
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except ValueError as error:
        if "object" not in str(error).lower():
            raise
        raise InputError(f"{path} must hold numbers, got Python objects") from None
    return array


def _npz(path: Path, key: str | None) -> np.ndarray | csr_matrix:
    if not _starts(path, _ZIP):
        raise InputError(f"{path} could not be read: it does not begin as a .npz file does")
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.keys())
        if key is None and {"format", "shape", "data"} <= set(names):
            from scipy.sparse import load_npz

            return load_npz(path).tocsr()
        try:
            found: np.ndarray = arrays[choose(path, names, key)]
            return found
        except ValueError as error:
            if "object" not in str(error).lower():
                raise
            raise InputError(f"{path} must hold numbers, got Python objects") from None


def _pt(path: Path, key: str | None) -> Tensor:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} could not be read: a .pt file must hold tensors and plain Python values alone"
        ) from None
    if isinstance(value, dict):
        tensors = {k: v for k, v in value.items() if isinstance(v, Tensor)}
        return tensors[choose(path, list(tensors), key)]
    if not isinstance(value, Tensor):
        raise InputError(f"{path} must hold a Tensor, got {type(value).__name__}")
    return value


def _csv(path: Path, key: str | None) -> np.ndarray:
    opened: Callable[..., Any] = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", newline="") as file:
        first = file.readline()
        second = file.readline()
    if not first.strip():
        raise InputError(f"{path} is empty")
    tab = ".tsv" in (suffix.lower() for suffix in path.suffixes)
    delimiter = "\t" if tab else max(",;\t", key=first.count)
    names = next(csv.reader([first], delimiter=delimiter))
    header = not all(map(_is_number, names))
    if header and second:
        row = next(csv.reader([second], delimiter=delimiter))
        for place, (name, value) in enumerate(zip(names, row, strict=False)):
            if not _is_number(value):
                raise InputError(
                    f"{path}: column {place + 1} ({name!r}) holds {value!r}: all columns must be "
                    "numbers"
                )
    if header and not second.strip():
        raise InputError(f"{path} holds no numbers")
    with opened(path, "rt", newline="") as file:
        array: np.ndarray = np.loadtxt(
            file, np.float32, delimiter=delimiter, skiprows=int(header), ndmin=2, quotechar='"'
        )
    return array


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _h5ad(path: Path, key: str | None) -> np.ndarray | csr_matrix:
    h5py = _h5py(path)
    if not _starts(path, _HDF5):
        raise InputError(f"{path} could not be read: it does not begin as an HDF5 file does")
    with h5py.File(path, "r") as file:
        name = key or "X"
        if name not in file and f"layers/{name}" in file:
            name = f"layers/{name}"
        if name not in file:
            layers = [f"layers/{layer}" for layer in file.get("layers", {})]
            raise InputError(f"{path} has no array {name!r}; it holds {', '.join(['X', *layers])}")
        found = file[name]
        if isinstance(found, h5py.Dataset):
            dense: np.ndarray = found[()]
            return dense
        from scipy.sparse import csc_matrix, csr_matrix

        kind = found.attrs.get("encoding-type", "csr_matrix")
        kinds = {"csr_matrix": csr_matrix, "csc_matrix": csc_matrix}
        if kind not in kinds:
            raise InputError(f"{path}: {name} must be an array or a sparse matrix, got {kind}")
        shape = tuple(found.attrs.get("shape", found.attrs.get("h5sparse_shape", ())))
        parts = found["data"][()], found["indices"][()], found["indptr"][()]
        return kinds[kind](parts, shape=shape).tocsr()


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ModuleNotFoundError:
        raise InputError(f"{path} needs h5py: {_install.command('anndata')}") from None
    return h5py


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


def _idx(path: Path, key: str | None) -> np.ndarray:
    """LeCun's format: two zeros, a type, the number of dimensions, each as a big-endian int32."""
    zipped = _starts(path, _GZIP)
    opened: Callable[..., Any] = gzip.open if zipped else open
    with opened(path, "rb") as file:
        _, _, kind, dims = file.read(4)
        shape = tuple(int(n) for n in np.frombuffer(file.read(4 * dims), ">i4"))
        offset, size = file.tell(), int(np.prod(shape)) * np.dtype(_IDX[kind]).itemsize
        content = file.read() if zipped else b""
    held = len(content) if zipped else path.stat().st_size - offset
    if held != size:
        raise InputError(f"{path} could not be read: {held} bytes of data, {size} announced")
    array: np.ndarray
    if zipped:
        array = np.frombuffer(bytearray(content), _IDX[kind])
    else:
        array = np.memmap(path, _IDX[kind], "c", offset)
    return array.reshape(shape)


_READERS: dict[str, Callable[[Path, str | None], Any]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _pt,
    ".pth": _pt,
    ".csv": _csv,
    ".tsv": _csv,
    ".h5ad": _h5ad,
}
