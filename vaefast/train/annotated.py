"""AnnData's .h5ad files, which are HDF5."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _install
from . import InputError, cache, sparse
from .cache import Source, write_rows

if TYPE_CHECKING:
    import h5py


def read(source: Source) -> np.ndarray | sparse.Rows:
    """`X`, or the layer that the key names."""
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
        return _sparse(source, found)


def _sparse(source: Source, group: h5py.Group) -> sparse.Rows:
    """A matrix as AnnData stores it."""
    kind = str(group.attrs.get("encoding-type", "csr_matrix"))
    if kind not in ("csr_matrix", "csc_matrix"):
        raise InputError(
            f"{source.path}: {group.name[1:]} must be an array or a sparse matrix, got {kind}"
        )

    def blocks(name: str, count: int) -> Iterator[np.ndarray]:
        for start in range(0, len(group[name]), count):
            yield group[name][start : start + count]

    shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape", ()))
    stored = sparse.Stored(
        kind[:3],
        tuple(int(n) for n in shape),
        len(group["data"]),
        group["data"].dtype,
        lambda name: _dataset(source, group[name]),
        blocks,
    )
    return sparse.read(source, stored, group.name)


def _dataset(source: Source, found: Any) -> np.ndarray:
    """A dataset of an opened HDF5 file."""

    def blocks() -> Iterator[np.ndarray]:
        rows = max(1, cache.PART * len(found) // max(1, found.nbytes))
        # Whole chunks: each is unpacked once.
        if found.chunks:
            rows = -(-rows // found.chunks[0]) * found.chunks[0]
        for start in range(0, len(found), rows):
            yield found[start : start + rows]

    mapped, itemsize = None, found.dtype.itemsize
    # 0: a dataset that nothing was written to.
    place: int = (found.id.get_offset() or 0) if found.chunks is None else 0
    plain = place > 0 and place % itemsize == 0 and found.dtype.kind in "buif"
    if found.nbytes > cache.LIMIT and plain and found.file.userblock_size == 0:
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
    if not h5py.is_hdf5(path):
        raise InputError(f"{path} could not be read: it does not begin as an HDF5 file does")
    return h5py.File(path, "r")
