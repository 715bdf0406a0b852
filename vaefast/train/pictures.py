"""What a trained model looks like: samples, reconstructions, a latent walk, the loss curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .files import whole
from .models import Model
from .usage import usage

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

# Small images are enlarged to about this many pixels, so that one can see them.
_TILE = 64
# Standard deviations of the prior.
WALK = torch.linspace(-3, 3, 11)
_MOST_ROWS = 32
# Nats of KL below which a dimension is called unused.
UNUSED = 0.05


@torch.no_grad()
def draw_all(folder: Path, model: Model, held_out: Tensor, seed: int) -> list[str]:
    """Writes samples.png, reconstructions.png and latent_walk.png; the names written.

    Images only: for data of shape [D] there is nothing to draw, and the list is empty.
    """
    if len(model.shape) != 3:
        return []
    save_samples(folder / "samples.png", model, model.sample(64, seed=seed))
    save_reconstructions(folder / "reconstructions.png", model, held_out[:24])
    save_walk(folder / "latent_walk.png", model, held_out)
    return ["samples.png", "reconstructions.png", "latent_walk.png"]


def save_samples(path: Path, model: Model, samples: Tensor) -> None:
    """Samples of the model, `[N, C, H, W]` in its mean's units."""
    title = "samples, z ~ N(0, I)" if model.name == "vae" else "samples, z ~ p(z)"
    save_grid(path, _pixels(model.head.shades(samples)), columns=8, title=title)


def save_reconstructions(path: Path, model: Model, x: Tensor) -> None:
    """Rows of originals, each above its reconstruction from mu."""
    pair = (model.head.values(x), model.reconstruct(x))
    originals, made = (_pixels(model.head.shades(values)) for values in pair)
    pairs = zip(originals.split(12), made.split(12), strict=True)
    rows = [row for pair in pairs for row in pair]
    save_grid(path, torch.cat(rows), columns=12, title="held-out originals above reconstructions")


def save_walk(path: Path, model: Model, x: Tensor) -> None:
    """One row per latent dimension, the most used on x first: E[x|z] as that dimension goes from
    -3 to 3 of its prior's standard deviations, the others at the prior's centre. What a dimension
    carries stands before it: nats of KL to its own prior, less than `UNUSED` of which are called
    so, or the variance of the posterior's mean where the prior does not have its dimensions
    apart."""
    kl = usage(model, [x]).kl
    use = model.encode(x)[0].var(0, correction=0).cpu() if kl is None else kl
    least, unit = (0.01, "variance") if kl is None else (UNUSED, "nats")
    order = use.argsort(descending=True)[:_MOST_ROWS]
    z = model.walk(order.tolist(), WALK)
    labels = [
        f"z{d}: {use[d]:.1f} {unit}" if use[d] >= least else f"z{d}: unused" for d in order.tolist()
    ]
    save_grid(
        path,
        _pixels(model.head.shades(model.mean(z.flatten(0, 1)))),
        columns=len(WALK),
        title="latent walk: one dimension a row, from -3 to 3 deviations of its prior",
        labels=labels,
    )


def save_grid(
    path: Path, images: Tensor, *, columns: int, title: str, labels: Sequence[str] = ()
) -> None:
    """Images `[N, 1 or 3, H, W]` in [0, 1] side by side as a PNG, each row with its label."""
    height, width = images.shape[2:]
    zoom = max(1, round(_TILE / max(height, width)))
    if zoom > 1:
        images = F.interpolate(images, scale_factor=zoom, mode="bicubic").clamp(0, 1)
    tiles = F.pad(images, (2, 2, 2, 2), value=0.5)
    rows = math.ceil(len(tiles) / columns)
    blank = tiles.new_full((rows * columns - len(tiles), *tiles.shape[1:]), 0.5)
    tiles = torch.cat([tiles, blank]).unflatten(0, (rows, columns))
    grid = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    _save_image(path, grid.numpy(), title, labels)


def save_curves(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Training loss against held-out loss, and the two parts of the latter, by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    curves: list[tuple[Axes, str, str]] = [
        (left, "train_loss", "training, at beta"),
        (left, "held_out_loss", "held out, -ELBO"),
        (right, "held_out_nll", "reconstruction, -log p(x|z)"),
        (right, "held_out_kl", "KL(q(z|x) || p(z))"),
    ]
    for axes, name, label in curves:
        axes.plot(epochs, [row[name] for row in rows], label=label)
    for axes, title in ((left, "loss"), (right, "held out, in parts")):
        axes.set(title=title, xlabel="epoch", ylabel="nats per sample")
        axes.legend()
        axes.grid(alpha=0.3)
    with whole(path) as part:
        figure.savefig(part, dpi=100)


def _pixels(images: Tensor) -> Tensor:
    """`[N, 1 or 3, H, W]`, on the CPU."""
    images = images.detach().float().cpu()
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1]


def _save_image(path: Path, pixels: np.ndarray, title: str, labels: Sequence[str]) -> None:
    from matplotlib.figure import Figure

    height, width = pixels.shape[:2]
    above, left = 28, 110 if labels else 0
    whole_height, whole_width = height + above, width + left
    figure = Figure(figsize=(whole_width / 100, whole_height / 100), dpi=100)
    place = (left / whole_width, 0, width / whole_width, height / whole_height)
    axes = figure.add_axes(place)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    figure.suptitle(title, y=1 - above / 2 / whole_height, va="center", fontsize=11)
    for row, label in enumerate(labels):
        y = (1 - (row + 0.5) / len(labels)) * height / whole_height
        figure.text((left - 8) / whole_width, y, label, ha="right", va="center", fontsize=10)
    with whole(path) as part:
        figure.savefig(part, dpi=100)
