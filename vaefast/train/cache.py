"""Arrays that are decoded once into a memory-mapped file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .files import whole

# Bytes of a decoded array above which it is not held in memory, where there is a cache.
LIMIT = 64 << 20
# Bytes that are decoded at a time.
PART = 1 << 20


class Source(NamedTuple):
    """A file; `key`: which array of it; `cache`: where decoded arrays are kept, None for nowhere;
    `say`: gets a line where they cannot be."""

    path: Path
    key: str | None
    cache: Path | None
    say: Callable[[str], None]

    def decoded(self, size: float, what: str, write: Callable[[Path], object]) -> np.ndarray | None:
        """The array that `write` puts into a .npy file, memory-mapped; None where it is small
        enough for memory, or there is no room to keep it.

        Args:
            size: of the array, in bytes, or about.
            what: which array of the file.
        """
        if self.cache is None or size <= LIMIT:
            return None
        return cached(self.cache, digest(file_state(self.path), what), write, self.say)


def cache_folder() -> Path:
    """Where decoded data is kept: VAEFAST_CACHE, or the user's folder for caches."""
    named = os.environ.get("VAEFAST_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaefast"


def digest(*parts: object) -> str:
    """The name under which something decoded is kept; `file_state` tells when a file changed."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def file_state(path: Path) -> tuple[str, int, int]:
    """Which file it is, and what of it changes when its content does."""
    about = path.stat()
    return str(path.resolve()), about.st_size, about.st_mtime_ns


def cached(
    cache: Path, name: str, write: Callable[[Path], object], say: Callable[[str], None]
) -> np.ndarray | None:
    """The memory-mapped array that is kept under a name, written by `write` where it is missing;
    None, and a line, where it cannot be written."""
    kept = cache / f"{name}.npy"
    if not kept.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with whole(kept, shared=True) as part:
                write(part)
        except OSError as error:
            # The source's own faults, a broken archive's, have no number.
            if error.errno is None:
                raise
            say(f"{cache} cannot be written ({error.strerror}): the data is read into memory")
            return None
    # Copy-on-write: torch wants memory that it could write to.
    array: np.ndarray = np.load(kept, mmap_mode="c")
    return array


def write_rows(path: Path, blocks: Iterable[np.ndarray]) -> None:
    """Writes blocks `[n, *shape]` one after the other as one .npy file.

    By `write`, not by a memory map: pages of that would count as this process's memory.
    """
    count = 0
    header: dict[str, Any] = {}
    with path.open("wb") as file:
        for block in blocks:
            if not header:
                header = {"descr": np.lib.format.dtype_to_descr(block.dtype)}
                shape = block.shape[1:]
                _write_header(file, header, (0, *shape))
            file.write(np.ascontiguousarray(block).data)
            count += len(block)
        if header:
            # NumPy leaves room in a header for its first dimension to grow.
            file.seek(0)
            _write_header(file, header, (count, *shape))


def _write_header(file: Any, header: dict[str, Any], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {**header, "fortran_order": False, "shape": shape})
