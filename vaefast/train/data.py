"""Training data: scikit-learn's digits, and the user's arrays and folders of images."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import InputError

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class Split(NamedTuple):
    """Training and held-out samples, `[N, *shape]`."""

    train: Tensor
    held_out: Tensor


class Digits(NamedTuple):
    """The digits `[N, 1, 8, 8]` in [0, 1] with their labels `[N]`."""

    images: Split
    labels: Split


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
    """The samples in a .npy, .npz or .pt file or a folder of images: `[N, D]` or `[N, C, H, W]`.

    uint8 and bool stay as they are, all else becomes float32. `[N, H, W]` becomes one channel,
    `[N, H, W, C]` with 1, 3 or 4 channels becomes `[N, C, H, W]`.

    Args:
        key: which array of a .npz, or of a dictionary in a .pt; needed where there are several.

    Raises:
        InputError: there is no such file, or it holds no such array.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    loaders: dict[str, Callable[[Path, str | None], np.ndarray | Tensor]]
    loaders = {".npy": _load_npy, ".npz": _load_npz, ".pt": _load_pt, ".pth": _load_pt}
    if path.suffix.lower() not in loaders:
        raise InputError(f"{path} must be .npy, .npz, .pt or a folder of images")
    try:
        array = loaders[path.suffix.lower()](path, key)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} could not be read: {reason}") from None
    return _canonical(array, path)


def check_target(data: Tensor, likelihood: str) -> None:
    """Raises InputError where `data` holds a value that the likelihood gives no mass to."""
    from ..likelihoods import resolve
    from ..ops import _validate

    if data.is_floating_point() and not bool(torch.isfinite(data).all()):
        raise InputError("the data holds NaN or infinite values")
    try:
        _validate.check_target(data, resolve(likelihood))
    except ValueError:
        low, high = float(data.min()), float(data.max())
        raise InputError(
            f"likelihood {likelihood} does not take the data's values, {low:g} to {high:g}; scale "
            "them (a uint8 array counts as pixels in [0, 255]) or take --likelihood gaussian"
        ) from None


def split(data: Tensor, fraction: float, seed: int) -> Split:
    """A random `fraction` of data `[N, ...]` held out, at least one sample on either side."""
    if len(data) < 2:
        raise InputError(f"training needs at least 2 samples, got {len(data)}")
    count = min(max(round(fraction * len(data)), 1), len(data) - 1)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return Split(data[order[count:]], data[order[:count]])


def _load_npy(path: Path, key: str | None) -> np.ndarray:
    array: np.ndarray = np.load(path, allow_pickle=False)
    return array


def _load_npz(path: Path, key: str | None) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[_choose(path, list(arrays.keys()), key)]  # type: ignore[no-any-return]


def _load_pt(path: Path, key: str | None) -> Tensor:
    value = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(value, dict):
        tensors = {k: v for k, v in value.items() if isinstance(v, Tensor)}
        return tensors[_choose(path, list(tensors), key)]
    if not isinstance(value, Tensor):
        raise InputError(f"{path} must hold a Tensor, got {type(value).__name__}")
    return value


def _choose(path: Path, names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        got = "needs --key" if key is None else f"has no array {key!r}"
        raise InputError(f"{path} {got}; it holds {', '.join(map(str, names)) or 'none'}")
    return key


def _load_folder(path: Path) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _IMAGES)
    if not files:
        raise InputError(f"{path} holds no images ({', '.join(_IMAGES)})")
    pictures = []
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode[0] in "IF":
                    raise InputError(f"{file} has more than 8 bits a pixel; make it a .npy array")
                pixels = np.asarray(image.convert("L" if image.mode in "1L" else "RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{file} could not be read: {error}") from None
        pictures.append(pixels)
        if pixels.shape != pictures[0].shape:
            raise InputError(
                "images must have one size and mode: "
                f"{files[0].name} is {pictures[0].shape}, {file.name} is {pixels.shape}"
            )
    stacked = np.stack(pictures)
    return _canonical(stacked if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2), path)


def _canonical(array: np.ndarray | Tensor, path: Path) -> Tensor:
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "buif":
            raise InputError(f"{path} must hold numbers, got {array.dtype}")
        if array.dtype not in (np.uint8, np.bool_):
            array = array.astype(np.float32)
        array = torch.from_numpy(np.ascontiguousarray(array))
    if array.is_complex():
        raise InputError(f"{path} must hold real numbers, got {array.dtype}")
    if array.dtype not in (torch.uint8, torch.bool):
        array = array.float()
    if array.dim() == 3:
        array = array.unsqueeze(1)
    elif array.dim() == 4 and array.shape[3] in (1, 3, 4) and array.shape[1] not in (1, 3, 4):
        array = array.permute(0, 3, 1, 2)
    if array.dim() not in (2, 4) or not array.numel():
        raise InputError(
            f"{path} must hold [N, D], [N, H, W] or [N, C, H, W], got {list(array.shape)}"
        )
    return array.detach().contiguous()
