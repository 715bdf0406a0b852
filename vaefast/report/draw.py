"""Charts as SVG and images as PNG, both inside the page and in its colours, light or dark."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .page import Html

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib writes colours as numbers, and the page's depend on the reader's theme: each of these
# stands for one of the page's variables and is replaced by it in the finished drawing.
INK, RULE = "#010203", "#040506"
SERIES = tuple(f"#0708{index:02x}" for index in range(1, 11))
_VARIABLES = {INK: "--ink", RULE: "--rule"} | {
    color: f"--s{index}" for index, color in enumerate(SERIES, 1)
}
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_THEME: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vaefast",
    "font.size": 10.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def chart(height: float = 2.9, width: float = 4.4) -> tuple[Figure, Axes]:
    """An empty drawing of one pair of axes, in inches: narrow, so that its letters can be read
    where a phone shows it whole."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_THEME):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
    return figure, axes


def dash(index: int) -> Any:
    """The dashes of a chart's line number `index`: colour alone tells some readers nothing."""
    return _DASHES[index % len(_DASHES)]


def svg(figure: Figure, alt: str) -> Html:
    """A drawing as SVG; `alt` says what it shows to who cannot see it."""
    import matplotlib

    for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)):
        if legend is not None:
            legend.set_frame_on(False)
    file = io.StringIO()
    with matplotlib.rc_context(_THEME):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # The style would hold for the whole page: it is in the page's own.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    # matplotlib gives every drawing the same names, which the page must have once each.
    prefix = f"d{hashlib.sha256((alt + text).encode()).hexdigest()[:8]}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = f'<svg class="chart" role="img" aria-label="{escape(alt)}" '
    return Html(text.replace("<svg ", label, 1).rstrip())


def tiles(images: Tensor, *, columns: int, alt: str, size: int = 34) -> Html:
    """Images `[N, C, H, W]` in [0, 1] (uint8: up to 255) in rows of `columns`.

    One channel is drawn in grey, three and more as the first three, two as the first.

    Args:
        size: of one image on the screen at most, in CSS pixels.
    """
    pixels = _rgba(images)
    count, height, width = pixels.shape[:3]
    # A gap that does not vanish beside a large image.
    gap = max(1, round(max(height, width) / 12))
    rows = -(-count // columns)
    canvas = torch.zeros(rows * (height + gap) - gap, columns * (width + gap) - gap, 4)
    for index in range(count):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = pixels[index]
    return png(canvas.numpy(), alt, most=columns * size)


def heat(values: Tensor, alt: str, *, most: int = 544) -> Html:
    """A matrix `[rows, columns]` as an image from its least value (dark) to its largest."""
    values = values.detach().float().cpu()
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / ((high - low) or 1.0)
    canvas = torch.stack([scaled, scaled, scaled, torch.ones_like(scaled)], -1)
    return png(canvas.numpy(), alt, most=most)


def png(canvas: np.ndarray, alt: str, *, most: int) -> Html:
    """Pixels `[H, W, 4]` in [0, 1] as an image at most `most` CSS pixels wide."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, canvas, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    height, width = canvas.shape[:2]
    return Html(
        f'<img alt="{escape(alt)}" width="{width}" height="{height}" style="--most:{most}px" '
        f'src="data:image/png;base64,{data}">'
    )


def scatter(points: np.ndarray, labels: Sequence[Any] | np.ndarray | None, alt: str) -> Html:
    """Points `[N, 2]`; each of up to ten labels is written where its points are, in a colour of
    its own."""
    import numpy as np

    figure, axes = chart(height=4.2)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    values: list[Any] = [] if labels is None else np.unique(np.asarray(labels)).tolist()
    if not 1 <= len(values) <= len(SERIES):
        axes.scatter(points[:, 0], points[:, 1], s=9, color=SERIES[0], alpha=0.7, linewidths=0)
        return svg(figure, alt)
    for index, value in enumerate(values):
        chosen = np.asarray(labels) == value
        name, plain = str(value), _plain(value)
        axes.scatter(
            points[chosen, 0],
            points[chosen, 1],
            s=26 if plain else 12,
            color=SERIES[index],
            marker=f"${name}$" if plain else "osD^vPX*<>"[index],
            linewidths=0,
            label=name,
        )
    # A label of one letter is written at each of its points.
    if not all(_plain(value) for value in values):
        figure.legend(loc="outside lower center", ncols=3, handletextpad=0.1, columnspacing=1.0)
    return svg(figure, alt)


def _plain(label: object) -> bool:
    name = str(label)
    return len(name) == 1 and name.isalnum()


def _rgba(images: Tensor) -> Tensor:
    """`[N, H, W, 4]` in [0, 1]."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    pixels = (images.detach().float().cpu() / scale).clamp(0, 1).nan_to_num(0.0)
    color = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
    return torch.cat([color, torch.ones_like(color[:, :1])], 1).permute(0, 2, 3, 1)
