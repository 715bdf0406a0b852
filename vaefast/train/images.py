"""A folder of images as one array, decoded once into a memory-mapped file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import InputError
from .cache import cached, digest, file_state, write_rows

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
    if cache is not None:
        made = cached(
            cache,
            _digest(path, files, options),
            lambda part: write_rows(part, (p[None] for p in _decoded(files, options, say))),
            say,
        )
        if made is not None:
            return made
    array, count = np.empty(0, np.uint8), 0
    for pixels in _decoded(files, options, say):
        if not count:
            array = np.empty((len(files), *pixels.shape), np.uint8)
        array[count] = pixels
        count += 1
    return array[:count]


def _digest(path: Path, files: list[Path], options: ImageOptions) -> str:
    states = [(str(f.relative_to(path)), *file_state(f)[1:]) for f in files]
    return digest(astuple(options), states)


def _decoded(
    files: list[Path], options: ImageOptions, say: Callable[[str], None]
) -> Iterator[np.ndarray]:
    """The pixels of one image after the other; those that cannot be read are left out or fatal."""
    grey = None if options.colour is None else options.colour == "grey"
    skipped: list[str] = []
    shape: tuple[int, ...] | None = None
    first = files[0]
    for file in files:
        try:
            pixels = _pixels(file, options, grey)
        except _Unreadable as error:
            if options.broken == "fail":
                raise InputError(f"{error}; --broken skip leaves such files out") from None
            skipped.append(str(error))
            continue
        if shape is None:
            # The first image that can be read says what the others are.
            first, shape = file, pixels.shape
            grey = pixels.ndim == 2 if grey is None and options.size else grey
        if pixels.shape != shape:
            raise InputError(
                f"images must have one size and mode: {first.name} is {_shown(shape)}, "
                f"{file.name} is {_shown(pixels.shape)}; --size and --colour make them alike"
            )
        yield pixels
    if shape is None:
        raise InputError(f"none of {len(files)} images could be read, the first: {skipped[0]}")
    if skipped:
        say(f"{len(skipped)} of {len(files)} images skipped, the first: {skipped[0]}")


def _shown(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) == 2 else (*shape[1:], shape[0])


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
