"""A folder of images as one array, decoded once into a memory-mapped file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import InputError
from .files import whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ImageOptions:
    """How a folder's images become samples of one shape.

    `size`: (height, width), or None for images that have one size already. `fit`: `"crop"` scales
    an image to cover that and cuts the middle out, `"resize"` stretches it. `colour`: `"grey"`,
    `"rgb"`, or None for what the first image is. `broken`: a file that cannot be read is `"fail"`
    or `"skip"`.
    """

    size: tuple[int, int] | None = None
    fit: Literal["crop", "resize"] = "crop"
    colour: Literal["grey", "rgb"] | None = None
    broken: Literal["fail", "skip"] = "fail"


def cache_folder() -> Path:
    """Where decoded images are kept: VAEFAST_CACHE, or the user's folder for caches."""
    named = os.environ.get("VAEFAST_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaefast"


def load_folder(
    path: Path,
    options: ImageOptions | None = None,
    *,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> np.ndarray:
    """The images under `path`, in the order of their names: uint8 `[N, H, W]` or `[N, 3, H, W]`.

    Args:
        cache: a folder in which the decoded images are kept, and found the next time, until a
            file or an option changes; None: they are decoded into memory.
        say: gets a line on the files that were skipped.

    Raises:
        InputError: there are none, or one cannot be read or does not fit the others.
    """
    options = options or ImageOptions()
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    if cache is None:
        return _decoded(files, options, None, say)
    kept = cache / f"{_digest(path, files, options)}.npy"
    if kept.exists():
        return np.load(kept, mmap_mode="c")  # type: ignore[no-any-return]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with whole(kept) as part:
            _decoded(files, options, part, say)
    except OSError as error:
        say(f"{cache} cannot be written ({error.strerror}): the images are decoded into memory")
        return _decoded(files, options, None, say)
    return np.load(kept, mmap_mode="c")  # type: ignore[no-any-return]


def _digest(path: Path, files: list[Path], options: ImageOptions) -> str:
    found = hashlib.sha256(repr(astuple(options)).encode())
    for file in files:
        about = file.stat()
        found.update(f"{file.relative_to(path)}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return found.hexdigest()[:32]


def _decoded(
    files: list[Path], options: ImageOptions, to: Path | None, say: Callable[[str], None]
) -> np.ndarray:
    grey = None if options.colour is None else options.colour == "grey"
    array: np.ndarray | None = None
    count, skipped, first = 0, [], files[0]
    for file in files:
        try:
            pixels = _pixels(file, options, grey)
        except _Unreadable as error:
            if options.broken == "fail":
                raise InputError(f"{error}; --broken skip leaves such files out") from None
            skipped.append(str(error))
            continue
        if array is None:
            # The first image that can be read says what the others are.
            first, grey = file, pixels.ndim == 2 if grey is None and options.size else grey
            shape = (len(files), *pixels.shape)
            if to is None:
                array = np.empty(shape, np.uint8)
            else:
                array = np.lib.format.open_memmap(to, "w+", np.uint8, shape)
        if pixels.shape != array.shape[1:]:
            raise InputError(
                f"images must have one size and mode: {first.name} is {_shown(array[0])}, "
                f"{file.name} is {_shown(pixels)}; --size and --colour make them alike"
            )
        array[count] = pixels
        count += 1
    if array is None:
        raise InputError(f"none of {len(files)} images could be read, the first: {skipped[0]}")
    if skipped:
        say(f"{len(skipped)} of {len(files)} images skipped, the first: {skipped[0]}")
    if to is None:
        return array[:count]
    if count < len(files):
        shorter = to.with_name(f"{to.stem}.short{to.suffix}")
        kept = np.lib.format.open_memmap(shorter, "w+", np.uint8, (count, *array.shape[1:]))
        for start in range(0, count, 1000):
            kept[start : start + 1000] = array[start : min(start + 1000, count)]
        kept.flush()
        os.replace(shorter, to)
        return kept
    array.flush()  # type: ignore[attr-defined]
    return array


def _shown(pixels: np.ndarray) -> tuple[int, ...]:
    return pixels.shape if pixels.ndim == 2 else (*pixels.shape[1:], pixels.shape[0])


class _Unreadable(Exception):
    """An image that cannot be had; the message names it."""


def _pixels(file: Path, options: ImageOptions, grey: bool | None) -> np.ndarray:
    """uint8 `[H, W]` or `[3, H, W]`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":
                raise _Unreadable(f"{file} has more than 8 bits a pixel; make it a .npy array")
            alone = image.mode in ("1", "L") if grey is None else grey
            made = image.convert("L" if alone else "RGB")
            if options.size is not None:
                made = _fitted(made, options)
            pixels = np.asarray(made)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise _Unreadable(f"{file} could not be read: {error}") from None
    return pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _fitted(image: Any, options: ImageOptions) -> Any:
    from PIL import Image, ImageOps

    assert options.size is not None
    height, width = options.size
    if options.fit == "resize":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
