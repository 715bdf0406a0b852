"""The report of a training run's folder, from what the run left in it."""

from __future__ import annotations

import importlib.util
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..train import InputError
from ..train.files import whole
from ..train.run_folder import CONFIG, HELD_OUT, REPORT, SUMMARY, RunFolder, load
from . import page
from .draw import SERIES, chart, dash, heat, scatter, svg, tiles
from .page import Html, Page

if TYPE_CHECKING:
    from ..train.data import Samples
    from ..train.models import Model

# Posteriors that are kept for the measures and the map, and examples that are shown.
_POSTERIORS, _EXAMPLES, _SAMPLES = 2000, 24, 64
_WALK = torch.linspace(-3, 3, 11)
_FEATURES = 64
_SIDES = {"train": "training", "held_out": "held out"}
_TITLES = {"loss": "loss", "nll": "reconstruction, -log p(x|z)", "kl": "KL(q(z|x) || p(z))"}


class HeldOut(NamedTuple):
    """Posteriors `[N, D]` of held-out data, their labels `[N]` if there are any, and the first few
    of the data."""

    mu: Tensor
    logvar: Tensor
    examples: Tensor
    labels: np.ndarray | None


@torch.no_grad()
def keep_held_out(
    run: RunFolder, model: Model, held_out: Tensor | Samples, labels: Tensor | None = None
) -> None:
    """Keeps of the held-out data `[N, *shape]` what a report needs: the run's folder is enough to
    make one later, wherever the data has gone."""
    found = [model.encode(batch) for batch in held_out[:_POSTERIORS].split(256)]
    mu, logvar = (torch.cat(parts).float().cpu() for parts in zip(*found, strict=True))
    arrays: dict[str, Any] = {"mu": mu, "logvar": logvar, "examples": held_out[:_EXAMPLES].cpu()}
    if labels is not None:
        arrays["labels"] = labels[:_POSTERIORS].cpu()
    file = io.BytesIO()
    np.savez_compressed(file, **{name: value.numpy() for name, value in arrays.items()})
    with whole(run.file(HELD_OUT)) as part:
        part.write_bytes(file.getvalue())


def write_report(run: RunFolder) -> None:
    """Writes report.html into the folder of a finished run.

    Raises:
        InputError: the folder holds no finished run, or a file of it cannot be read.
    """
    config = run.read_config()
    if "model" not in config:
        raise InputError(
            f"{run.path} is no training run: {CONFIG} describes no model (of `vaefast "
            f"{config.get('command', '...')}`)"
        )
    model, seed = load(run.path), int((config.get("training") or {}).get("seed", 0))
    rows, summary, held_out = run.read_metrics(), _summary(run), _held_out(run)
    text = _page(run.path.name, config, model, seed, rows, summary, held_out).html()
    with whole(run.file(REPORT)) as part:
        part.write_text(text, encoding="utf-8")


def _summary(run: RunFolder) -> dict[str, Any]:
    path = run.file(SUMMARY)
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}


def _held_out(run: RunFolder) -> HeldOut | None:
    path = run.file(HELD_OUT)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mu, logvar, examples = (
                torch.from_numpy(arrays[name]) for name in ("mu", "logvar", "examples")
            )
            labels = arrays.get("labels")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return HeldOut(mu, logvar, examples, labels)


def _page(
    name: str,
    config: Mapping[str, Any],
    model: Model,
    seed: int,
    rows: Sequence[Mapping[str, float]],
    summary: Mapping[str, Any],
    held_out: HeldOut | None,
) -> Page:
    shape = " × ".join(map(str, model.shape))
    document = Page(
        f"Run {name}",
        f"A model, {model.name}, of {model.latent} latent dimensions on data of shape {shape}, by "
        f"vaefast {config.get('command', 'train')}. All values are in nats per sample unless "
        "they say otherwise.",
    )
    document.section("Figures", _figures(summary))
    document.section("Curves", _curves(rows))
    document.section("Samples", _samples(model, seed))
    objective = (config.get("objective") or {}).get("name")
    plain = objective == "autoencoder" or bool((config.get("training") or {}).get("autoencoder"))
    if held_out is None or len(held_out.mu) < 2:
        missing = f"{HELD_OUT} is missing" if held_out is None else "There is one held-out sample"
        missing += ": reconstructions and the latent space are not shown."
        document.section("Held-out data", [page.paragraph(missing)])
        document.section("Walks", _walks(model, list(range(model.latent)), None))
    else:
        report = metrics.collapse_report(held_out.mu, held_out.logvar, seed=seed)
        # An autoencoder's log-variances were never trained: its codes' spread says what is used.
        use = report.variance if plain else report.kl
        order = torch.argsort(use.nan_to_num(-1.0), descending=True).tolist()
        document.section("Reconstructions", _reconstructions(model, held_out))
        document.section("Latent dimensions", _dimensions(report, order, plain))
        document.section("Walks", _walks(model, order, report, plain))
        document.section("Map of the latent space", _map(held_out))
    document.section("Settings", _settings(config))
    return document


def _figures(summary: Mapping[str, Any]) -> list[Html]:
    before, after = summary.get("held_out_before"), summary.get("held_out_after")
    parts, rest = [], dict(summary)
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        rows = [(name.upper(), before.get(name), value) for name, value in after.items()]
        parts.append(page.table(["", "before", "after"], rows, "Held-out data, nats per sample"))
        rest = {k: v for k, v in rest.items() if k not in ("held_out_before", "held_out_after")}
    others = page.flat(rest)
    if others:
        parts.append(page.table(["", "value"], others, "What else the run measured"))
    return parts


def _curves(rows: Sequence[Mapping[str, float]]) -> list[Html]:
    """A chart for each measure of metrics.csv, with training and held-out data in one."""
    measures: dict[str, list[tuple[str, str]]] = {}
    for column in rows[0] if rows else ():
        if column not in ("epoch", "step"):
            side = next((s for s in ("train", "held_out") if column.startswith(f"{s}_")), "")
            measure = column.removeprefix(f"{side}_") if side else column
            measures.setdefault(measure, []).append((column, side))
    place = next((name for name in ("epoch", "step") if rows and name in rows[0]), None)
    x = [row[place] if place else index for index, row in enumerate(rows)]
    figures = []
    for measure, columns in measures.items():
        figure, axes = chart()
        for index, (column, side) in enumerate(columns):
            label = _SIDES.get(side, column)
            # The same side has the same look in every chart.
            look = ("train", "held_out", "").index(side) or 0
            axes.plot(
                x,
                [row.get(column, math.nan) for row in rows],
                color=SERIES[look if side else index % len(SERIES)],
                linestyle=dash(look if side else index),
                marker="o" if len(rows) == 1 else None,
                label=label,
            )
        axes.set(xlabel=place or "row")
        if len(columns) > 1:
            axes.legend()
        title = _TITLES.get(measure, measure.replace("_", " "))
        last = ", ".join(
            f"{_SIDES.get(side, column)} {page.show(rows[-1].get(column))}"
            for column, side in columns
        )
        drawing = svg(figure, f"{title} by {place or 'row'}; at the end: {last}")
        figures.append(page.figure(drawing, f"{title}; at the end: {last}"))
    return [page.grid(figures)] if figures else []


@torch.no_grad()
def _samples(model: Model, seed: int) -> list[Html]:
    shown = _shown(model, model.sample(_SAMPLES, seed=seed))
    return [
        page.figure(
            _show(shown, f"{_SAMPLES} samples of the model", columns=8),
            "E[x|z] at z ~ p(z): what the model makes without any input.",
        )
    ]


def _shown(model: Model, values: Tensor) -> Tensor:
    """Values in the units of the model's mean as they are shown: images as grey levels."""
    return model.head.shades(values) if len(model.shape) == 3 else values


@torch.no_grad()
def _reconstructions(model: Model, held_out: HeldOut) -> list[Html]:
    mean = _shown(model, model.mean(held_out.mu[: len(held_out.examples)]))
    examples = _shown(model, model.head.values(held_out.examples))
    pair = [
        page.figure(_show(examples, "held-out data", columns=6), "Held-out data."),
        page.figure(_show(mean, "their reconstructions", columns=6), "E[x|z] at z = mu(x)."),
    ]
    return [page.grid(pair)]


def _dimensions(report: metrics.CollapseReport, order: Sequence[int], plain: bool) -> list[Html]:
    active = report.active.tolist()
    measure = "variance of the code" if plain else "KL (nats)"
    use = (report.variance if plain else report.kl).tolist()
    figure, axes = chart()
    places = range(len(order))
    axes.bar(places, [use[d] for d in order], color=[SERIES[not active[d]] for d in order])
    if len(order) <= 20:
        axes.set_xticks(list(places), [str(d + 1) for d in order])
    else:
        axes.set_xticks([])
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="dimension, the most used first", ylabel=measure)
    dead = [str(d + 1) for d in sorted(order) if not active[d]]
    words = f"Collapsed: {', '.join(dead)}." if dead else "No dimension has collapsed."
    about = f"{report}." if not plain else "An autoencoder has codes, no posterior and no KL."
    head = ["dimension", "KL (nats)", "variance of mu", "mean sigma", "active"]
    kl, variance, std = report.kl.tolist(), report.variance.tolist(), report.std.tolist()
    rows: list[list[object]] = [[d + 1, kl[d], variance[d], std[d], active[d]] for d in order]
    if plain:
        head, rows = ["dimension", "variance"], [[d + 1, variance[d]] for d in order]
    drawing = svg(figure, f"{measure} by dimension. {words}")
    return [
        page.paragraph(f"{about} {words}"),
        page.grid([page.figure(drawing, f"{measure} by dimension.")]),
        page.details("As a table", [page.table(head, rows, "Latent dimensions, by use")]),
    ]


@torch.no_grad()
def _walks(
    model: Model,
    order: Sequence[int],
    report: metrics.CollapseReport | None,
    plain: bool = False,
) -> list[Html]:
    z = torch.zeros(len(order), len(_WALK), model.latent)
    for row, dimension in enumerate(order):
        z[row, :, dimension] = _WALK
    rows = []
    for dimension, images in zip(order, _shown(model, model.mean(z)), strict=True):
        label = f"dimension {dimension + 1}"
        if report is not None:
            use = (report.variance if plain else report.kl)[dimension]
            label += f": {float(use):.2f}" + (" variance" if plain else " nats")
            label += "" if report.active[dimension] else ", collapsed"
        alt = f"E[x|z] along {label}, from -3 to 3"
        rows.append((label, _show(images, alt, columns=len(_WALK))))
    used = "by the variance of their codes" if plain else "by how much they are used (their KL)"
    how = used if report is not None else "as they are numbered"
    text = f"E[x|z] as one dimension goes from -3 to 3 and the others stay at 0; dimensions {how}."
    shown, hidden = rows[:16], rows[16:]
    parts = [page.paragraph(text), page.strips(shown)]
    if hidden:
        parts.append(page.details(f"{len(hidden)} more dimensions", [page.strips(hidden)]))
    return parts


def _map(held_out: HeldOut) -> list[Html]:
    mu, labels = held_out.mu[:1000], held_out.labels
    labels = None if labels is None else labels[: len(mu)]
    if not bool(torch.isfinite(mu).all()):
        return [page.paragraph("The posteriors' means are not finite: there is no map.")]
    if len(mu) < 8 or float(mu.var(0).sum()) == 0:
        why = "too few held-out data" if len(mu) < 8 else "all posteriors have the same mean"
        return [page.paragraph(f"No map: {why}.")]
    points, how = _plane(mu)
    told = "coloured by label" if labels is not None else "without labels"
    caption = f"The posteriors' means of {len(mu)} held-out data: {how}, {told}."
    return [page.figure(scatter(points, labels, caption), caption)]


def _plane(mu: Tensor) -> tuple[np.ndarray, str]:
    """Points `[N, 2]`, and what they are."""
    values = mu.numpy()
    if mu.shape[1] == 1:
        return np.concatenate([values, np.zeros_like(values)], 1), "the one dimension"
    if mu.shape[1] == 2:
        return values, "the two dimensions as they are"
    if importlib.util.find_spec("umap"):
        from umap import UMAP

        return np.asarray(UMAP(random_state=0).fit_transform(values)), "UMAP"
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(
        values
    )
    return np.asarray(found), "t-SNE"


def _settings(config: Mapping[str, Any]) -> list[Html]:
    table = page.table(["", "value"], page.flat(config), "config.json, and what made it")
    return [Html(f'<div class="settings">{table}</div>')]


def _show(data: Tensor, alt: str, *, columns: int) -> Html:
    """Images as tiles; vectors as rows of a picture, those features that differ most."""
    if data.dim() == 4:
        large = max(data.shape[2:])
        return tiles(data, columns=columns, alt=alt, size=max(44, min(large, 96)))
    rows = data.flatten(1).float()
    if rows.shape[1] > _FEATURES:
        keep = rows.var(0).nan_to_num(-1.0).topk(_FEATURES).indices.sort().values
        rows, alt = rows[:, keep], f"{alt}: the {_FEATURES} features that differ most"
    return heat(rows, f"{alt}; a row is a sample, a column a feature")
