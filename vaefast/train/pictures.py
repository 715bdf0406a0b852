"""What a trained model looks like: samples, reconstructions, a latent walk, the loss curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import random
from .files import whole
from .models import VAE

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

# Small images are enlarged to about this many pixels, so that one can see them.
_TILE = 64
_WALK = torch.linspace(-3, 3, 11)


@torch.no_grad()
def draw_all(folder: Path, model: VAE, held_out: Tensor, seed: int) -> list[str]:
    """Writes samples.png, reconstructions.png and latent_walk.png; the names written.

    Images only: for data of shape [D] there is nothing to draw, and the list is empty.
    """
    if len(model.shape) != 3:
        return []
    device = next(model.parameters()).device
    state = random.make_state(torch.empty(0, device=device), 0, seed)
    z = random.normal((64, model.latent), state)
    save_grid(folder / "samples.png", model.mean(z), columns=8, title="samples, z ~ N(0, I)")
    save_reconstructions(folder / "reconstructions.png", model, held_out[:24])
    save_walk(folder / "latent_walk.png", model)
    return ["samples.png", "reconstructions.png", "latent_walk.png"]


def save_reconstructions(path: Path, model: VAE, x: Tensor) -> None:
    """Rows of originals, each above its reconstruction from mu."""
    mu, _ = model.encode(x)
    pairs = zip(_pixels(x).split(12), _pixels(model.mean(mu)).split(12), strict=True)
    rows = [row for pair in pairs for row in pair]
    save_grid(path, torch.cat(rows), columns=12, title="held-out originals above reconstructions")


def save_walk(path: Path, model: VAE) -> None:
    """One row per latent dimension: E[x|z] as that dimension goes from -3 to 3, the others 0."""
    device = next(model.parameters()).device
    z = torch.zeros(model.latent, len(_WALK), model.latent, device=device)
    for dimension in range(model.latent):
        z[dimension, :, dimension] = _WALK.to(device)
    save_grid(
        path,
        model.mean(z.flatten(0, 1)),
        columns=len(_WALK),
        title="latent walk: one dimension a row, from -3 to 3",
    )


def save_grid(path: Path, images: Tensor, *, columns: int, title: str) -> None:
    """Images `[N, C, H, W]` side by side as a PNG."""
    images = _pixels(images).clamp(0, 1)
    height, width = images.shape[2:]
    zoom = max(1, round(_TILE / max(height, width)))
    if zoom > 1:
        images = F.interpolate(images, scale_factor=zoom, mode="bicubic").clamp(0, 1)
    tiles = F.pad(images, (2, 2, 2, 2), value=0.5)
    rows = math.ceil(len(tiles) / columns)
    blank = tiles.new_full((rows * columns - len(tiles), *tiles.shape[1:]), 0.5)
    tiles = torch.cat([tiles, blank]).unflatten(0, (rows, columns))
    grid = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    _save_image(path, grid.numpy(), title)


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
    """`[N, 1 or 3, H, W]` in [0, 1], on the CPU."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    images = images.detach().float().cpu() / scale
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1]


def _save_image(path: Path, pixels: np.ndarray, title: str) -> None:
    from matplotlib.figure import Figure

    height, width = pixels.shape[:2]
    strip = 28
    figure = Figure(figsize=(width / 100, (height + strip) / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, height / (height + strip)))
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    figure.suptitle(title, y=1 - strip / 2 / (height + strip), va="center", fontsize=11)
    with whole(path) as part:
        figure.savefig(part, dpi=100)
