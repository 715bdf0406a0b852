"""Plots of a result file: speed-up over eager and peak memory as bars, both against the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, NullLocator

from .case import COMPILED, EAGER, FUSED, LIMIT, STEP, TOGETHER
from .report import LABELS, fused_in, last_pass, times

Entry = dict[str, Any]

# Colours that differ in lightness too (Okabe & Ito); vaefast stands out.
COLOURS = {
    EAGER: "#9a9a9a",
    COMPILED: "#56b4e9",
    "functional": "#f0e442",
    "distributions": "#cc79a7",
    "products": "#0072b2",
    "chunked": "#999933",
    "keops": "#882255",
    FUSED + "native": "#d55e00",
    FUSED + "triton": "#009e73",
    FUSED + "reference": "#e69f00",
    TOGETHER: "#8c3b00",
    LIMIT: "#000000",
}
BAR = 0.19


def speed(machine: Entry, cases: Sequence[Entry], path: Path) -> None:
    """Speed-up over eager per case, on a logarithmic axis."""

    def value(entry: Entry, name: str) -> float | None:
        figures = last_pass(entry)["implementations"].get(name, {})
        ratio: float | None = figures.get("speedup", {}).get(EAGER)
        return ratio

    names = [n for n in COLOURS if n != EAGER]
    whole = all(STEP in entry["passes"] for entry in cases)
    what = "a whole training step" if whole else "forward and backward"
    _bars(machine, cases, names, value, f"times as fast as eager, {what}", path, True)


def memory(machine: Entry, cases: Sequence[Entry], path: Path) -> None:
    """Peak memory above the inputs, in multiples of what a pass may allocate."""

    def value(entry: Entry, name: str) -> float | None:
        part = last_pass(entry)
        peak = part["implementations"].get(name, {}).get("peak")
        return peak["bytes"] / part["allowed"] if peak and part["allowed"] else None

    kept = [e for e in cases if last_pass(e)["allowed"]]
    label = "peak memory above the inputs / (outputs + gradients + kept), forward and backward"
    _bars(machine, kept, list(COLOURS), value, label, path, False)


def sweep(machine: Entry, cases: Sequence[Entry], op: str, path: Path) -> bool:
    """Time and peak memory of `op` against the batch, at the last dimension with most batches;
    False where too few sizes were measured."""
    found = [e for e in cases if e["op"] == op]
    widths = [e["shape"][-1] for e in found]
    width = max(set(widths), key=widths.count, default=0)
    found = sorted((e for e in found if e["shape"][-1] == width), key=lambda e: e["shape"][0])
    if len(found) < 3:
        path.unlink(missing_ok=True)
        return False
    figure, both = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for name, colour in COLOURS.items():
        points = [
            (e["shape"][0], f["median_us"] / 1e6, f.get("peak", {}).get("bytes"))
            for e in found
            if "median_us" in (f := last_pass(e)["implementations"].get(name, {}))
        ]
        if not points:
            continue
        batches, seconds, peaks = zip(*points, strict=True)
        label = LABELS.get(name, name)
        both[0].plot(batches, seconds, "o-", color=colour, label=label)
        kept = [(b, peak / 2**20) for b, peak in zip(batches, peaks, strict=True) if peak]
        both[1].plot(*zip(*kept, strict=True), "o-", color=colour, label=label)
    for axes, text in zip(both, ("seconds", "peak memory above the inputs, MiB"), strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([e["shape"][0] for e in found], [e["shape"][0] for e in found])
        axes.set_xlabel(f"batch ({width} dimensions)", fontsize=8)
        axes.set_title(text, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"{op}, forward and backward, {machine['device']}", fontsize=9)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
    return True


def _bars(
    machine: Entry,
    cases: Sequence[Entry],
    names: Sequence[str],
    value: Callable[[Entry, str], float | None],
    label: str,
    path: Path,
    logarithmic: bool,
) -> None:
    shown = [n for n in names if any(value(entry, n) is not None for entry in cases)]
    if not shown:
        path.unlink(missing_ok=True)
        return
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + len(cases) * (0.16 * len(shown) + 0.2)))
    ours = max((len(fused_in(last_pass(e))) for e in cases), default=1)
    labelled: set[str] = set()

    def label_of(name: str) -> str:
        return LABELS.get(name, name if ours > 1 else "vaefast")

    for row, entry in enumerate(cases):
        present = [(n, v) for n in shown if (v := value(entry, n)) is not None]
        for place, (name, height) in enumerate(present):
            y = row + (place - (len(present) - 1) / 2) * BAR
            axes.barh(
                y,
                height - 1 if logarithmic else height,
                BAR * 0.9,
                left=1 if logarithmic else 0,
                color=COLOURS[name],
                label="_" if name in labelled else label_of(name),
            )
            labelled.add(name)
            inside = logarithmic and height < 1
            axes.annotate(
                times(height),
                (height, y),
                xytext=(-3 if inside else 3, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                fontsize=7,
                fontweight="bold" if name.startswith(FUSED) else "normal",
            )
    axes.axvline(1, color="black", linewidth=0.8)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}x"))
        heights = [v for e in cases for n in shown if (v := value(e, n)) is not None]
        axes.set_xlim(min(0.5, *heights) / 1.6, max(2, *heights) * 1.4)
        axes.margins(y=0.02)
    else:
        axes.margins(x=0.08, y=0.02)
    axes.set_yticks(range(len(cases)), [entry["name"] for entry in cases], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    threads = f", {machine['threads']} threads" if machine["kind"] == "cpu" else ""
    axes.set_title(f"{machine['device']}{threads}, float32", fontsize=9, pad=26)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [text for text in map(label_of, shown) if text in handles]
    # In a row of its own above the axes: bars may reach anywhere inside.
    axes.legend(
        [handles[text] for text in order],
        order,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=len(order),
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
