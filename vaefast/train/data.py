"""Training data: scikit-learn's digits, and the user's files and folders of images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import InputError, cache, formats, sparse
from .images import ImageOptions, load_folder

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# What is looked at of the data at a time, in elements.
_PART = 1 << 18
DIGITS = "digits"
# What torch stores and does not compute with: NumPy does.
_STORED = {torch.uint16, torch.uint32, torch.uint64}
_REAL = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


class Split(NamedTuple):
    """Training and held-out samples, `[N, *shape]`."""

    train: Tensor
    held_out: Tensor


class Digits(NamedTuple):
    """The digits `[N, 1, 8, 8]` in [0, 1] with their labels `[N]`."""

    images: Split
    labels: Split


class Samples:
    """Rows of an array in memory or in a memory-mapped file, or of a sparse matrix, which is made
    dense a batch at a time.

    Args:
        data: `[N, *shape]`: a tensor; a NumPy array, of which a batch at a time is made a tensor
            (of what torch has no type for); or a sparse matrix by rows, of a file or scipy's.
        index: which rows; None for all.
    """

    def __init__(
        self, data: Tensor | np.ndarray | sparse.Rows | csr_matrix, index: Tensor | None = None
    ) -> None:
        self.data = data
        self.index = torch.arange(data.shape[0]) if index is None else index

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(int(n) for n in self.data.shape[1:])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> Tensor:
        return self._take(self.index[rows])

    def take(self, rows: Tensor) -> Tensor:
        """The samples `[len(rows), *shape]`: uint8 and bool as they are, all else float32."""
        return self._take(self.index[rows])

    def _take(self, index: Tensor) -> Tensor:
        if isinstance(self.data, Tensor):
            rows = self.data[index]
            return rows if rows.dtype in (torch.uint8, torch.bool) else rows.float()
        if isinstance(self.data, np.ndarray):
            return torch.from_numpy(self.data[index.numpy()].astype(np.float32))
        return torch.from_numpy(sparse.take(self.data, index.numpy()))

    def subset(self, rows: Tensor) -> Samples:
        """These rows."""
        return Samples(self.data, self.index[rows])

    def batches(self, size: int) -> Iterator[Tensor]:
        """All samples, `size` at a time."""
        for rows in self.index.split(size):
            yield self._take(rows)

    def values(self) -> Iterator[Tensor]:
        """All values of the data, whatever the index, a part at a time: as they are stored where
        torch has a type for them, else as float64."""
        if isinstance(self.data, (Tensor, np.ndarray)):
            size = max(1, _PART // max(1, math.prod(self.shape)))
            for start in range(0, len(self.data), size):
                part = self.data[start : start + size]
                yield part if isinstance(part, Tensor) else torch.from_numpy(part.astype(float))
        else:
            stored = self.data.data
            kind = stored.dtype if stored.dtype in (np.uint8, np.bool_) else np.float64
            # All that are not stored.
            yield torch.from_numpy(np.zeros(1, kind))
            for start in range(0, len(stored), _PART):
                yield torch.from_numpy(stored[start : start + _PART].astype(kind))

    def digest(self) -> str:
        """SHA-256 of the data, by which a resumed run knows them again."""
        found = hashlib.sha256()
        if isinstance(self.data, (Tensor, np.ndarray)):
            for part in self.values():
                part = part if part.dtype in (torch.uint8, torch.bool) else part.float()
                found.update(np.ascontiguousarray(part.numpy()).data)
        else:
            narrow = max(*self.data.shape, len(self.data.data)) < 2**31
            places = np.int32 if narrow else np.int64
            for array, kind in (
                (self.data.indptr, places),
                (self.data.indices, places),
                (self.data.data, self.data.data.dtype),
            ):
                for start in range(0, len(array), _PART):
                    found.update(np.ascontiguousarray(array[start : start + _PART], kind).data)
        return found.hexdigest()

    def range(self) -> tuple[float, float]:
        """The least and the greatest value.

        Raises:
            InputError: a value is NaN or infinite.
        """
        low, high = float("inf"), -float("inf")
        for part in self.values():
            if not part.numel():
                continue
            if part.is_floating_point() and not bool(torch.isfinite(part).all()):
                raise InputError("the data holds NaN or infinite values")
            low, high = min(low, float(part.min())), max(high, float(part.max()))
        return low, high


def load_digits() -> Digits:
    """1797 handwritten digits of scikit-learn, 8x8 pixels, a fixed fifth of them held out."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    bunch = load()
    pixels = torch.from_numpy(bunch.data).float().div(16).view(-1, 1, 8, 8)
    labels = torch.from_numpy(bunch.target)
    train, held_out = (
        torch.from_numpy(rows)
        for rows in train_test_split(
            np.arange(len(labels)), test_size=360, stratify=bunch.target, random_state=0
        )
    )
    return Digits(Split(pixels[train], pixels[held_out]), Split(labels[train], labels[held_out]))


def load_array(path: str | Path, *, key: str | None = None) -> Tensor:
    """The samples in a file or a folder of images as one tensor: `[N, D]` or `[N, C, H, W]`.

    uint8 and bool stay as they are, all else becomes float32. `[N, H, W]` becomes one channel,
    `[N, H, W, C]` with 1, 3 or 4 channels becomes `[N, C, H, W]`.

    Args:
        key: which array of a .npz or .h5ad, or of a dictionary in a .pt; needed where there are
            several.

    Raises:
        InputError: there is no such file, or it holds no such array.
    """
    samples = load_samples(path, key=key, cache=None)
    return samples[:].contiguous()


def load_samples(
    path: str | Path,
    *,
    key: str | None = None,
    images: ImageOptions | None = None,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Samples:
    """The samples in a file or a folder of images, memory-mapped where that can be; `"digits"` is
    scikit-learn's.

    Arguments as in `load_array` and `load_folder`. uint8 of no other values than 0 and 1 is bool.
    """
    if str(path) == DIGITS and not Path(path).exists():
        digits = load_digits().images
        return Samples(torch.cat([digits.train, digits.held_out]))
    path = Path(path)
    if path.is_dir():
        return Samples(_canonical(load_folder(path, images, cache=cache, say=say), path))
    if images not in (None, ImageOptions()):
        raise InputError(f"--size, --fit, --colour and --broken are for folders, got {path}")
    found = formats.read(path, key, cache=cache, say=say)
    if isinstance(found, (np.ndarray, Tensor)):
        return Samples(_canonical(found, path))
    if found.data.dtype == np.uint8 and _two_values(torch.from_numpy(found.data)):
        found = replace(found, data=found.data.view(np.bool_))
    return Samples(found)


def load_from(settings: Mapping[str, Any], say: Callable[[str], None]) -> Samples:
    """The samples that a run's section `data` describes."""
    size = settings.get("size")
    options = ImageOptions(
        (size[0], size[1]) if size else None,
        settings.get("fit") or "crop",
        settings.get("colour"),
        settings.get("broken") or "fail",
    )
    return load_samples(
        settings["path"],
        key=settings.get("key"),
        images=options,
        cache=cache.cache_folder(),
        say=say,
    )


def check_target(data: Tensor | Samples, likelihood: str, settings: Mapping[str, Any] = {}) -> None:
    """Raises InputError where `data` holds a value that the likelihood gives no mass to."""
    from .models.head import Head

    samples = data if isinstance(data, Samples) else Samples(data)
    low, high = samples.range()
    head = Head(likelihood, samples.shape, settings=settings)
    for part in samples.values():
        if part.dtype not in (torch.uint8, torch.bool):
            part = part.float()
        inside = bool(head.base.support(head.target(part)).all())
        if likelihood == "categorical":
            whole = not part.is_floating_point() or bool((part == part.floor()).all())
            inside = inside and whole and high < (head.classes or 0)
        if not inside:
            raise InputError(
                f"likelihood {likelihood} does not take the data's values, {low:g} to {high:g}; "
                "scale them (a uint8 array counts as pixels in [0, 255]) or take --likelihood "
                "gaussian"
            )


def split(data: Tensor, fraction: float, seed: int) -> Split:
    """A random `fraction` of data `[N, ...]` held out, at least one sample on either side."""
    train, held_out = split_rows(len(data), fraction, seed)
    return Split(data[train], data[held_out])


class Parts(NamedTuple):
    """As `Split`, of rows that are not copied."""

    train: Samples
    held_out: Samples


def split_samples(data: Samples, fraction: float, seed: int) -> Parts:
    """As `split`."""
    train, held_out = split_rows(len(data), fraction, seed)
    return Parts(data.subset(train), data.subset(held_out))


def split_rows(size: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """The rows on either side of a split of `size`."""
    if size < 2:
        raise InputError(f"training needs at least 2 samples, got {size}")
    count = min(max(round(fraction * size), 1), size - 1)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[count:], order[:count]


def _canonical(array: np.ndarray | Tensor, path: Path) -> Tensor | np.ndarray:
    """An array as `[N, D]` or `[N, C, H, W]`: a tensor, unless it is large and that were a copy."""
    if isinstance(array, Tensor) and array.dtype in _STORED:
        array = array.numpy()
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "buif":
            raise InputError(f"{path} must hold numbers, got {array.dtype}")
        native = array.dtype.newbyteorder("=")
        # What torch has no type for, or none that it can index.
        if array.dtype.kind == "u" and native != np.uint8:
            native = np.dtype(np.int64)
        if native == np.float16 or native.itemsize > 8:
            native = np.dtype(np.float32)
        if native == array.dtype or array.nbytes <= cache.LIMIT:
            array = torch.from_numpy(np.asarray(array, native))
    if isinstance(array, Tensor) and array.dtype not in _REAL:
        raise InputError(f"{path} must hold real numbers, got {array.dtype}")
    shape = tuple(array.shape)
    if len(shape) == 3:
        array = array[:, None]
    elif len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        array = array.movedim(3, 1) if isinstance(array, Tensor) else np.moveaxis(array, 3, 1)
    if len(array.shape) not in (2, 4) or 0 in array.shape:
        raise InputError(
            f"{path} must hold [N, D], [N, H, W] or [N, C, H, W], got {list(array.shape)}"
        )
    if isinstance(array, np.ndarray):
        return array
    if array.dtype == torch.uint8 and _two_values(array):
        return array.view(torch.bool)
    return array


def _two_values(array: Tensor) -> bool:
    """Two values in bytes are no pixels: 1 is not 1/255."""
    size = max(1, _PART // max(1, math.prod(array.shape[1:])))
    return all(int(part.max()) <= 1 for part in array.split(size) if len(part))
