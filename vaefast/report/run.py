"""The report of a training run's folder, from what the run left in it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..train import InputError
from ..train.files import whole
from ..train.models import VAE
from ..train.pictures import WALK
from ..train.run_folder import CONFIG, HELD_OUT, REPORT, SUMMARY, RunFolder, load
from ..train.usage import Usage, from_arrays, to_arrays, usage
from . import page
from .draw import SERIES, chart, dash, heat, scatter, svg, tiles
from .page import Html, Page
from .plane import plane

if TYPE_CHECKING:
    from ..train.data import Samples
    from ..train.models import Model

# Posteriors that are kept for the measures and the map, and examples that are shown.
_POSTERIORS, _EXAMPLES, _SAMPLES = 2000, 24, 64
_FEATURES = 64
_SIDES = {"train": "training", "held_out": "held out"}
_TITLES = {"loss": "loss", "nll": "reconstruction, -log p(x|z)", "kl": "KL(q(z|x) || p(z))"}


Labels = Tensor | np.ndarray | None


class HeldOut(NamedTuple):
    """Posteriors `[N, D]` of held-out data, their labels `[N]` if there are any, the first few of
    the data, and their KL; None of an older version."""

    mu: Tensor
    logvar: Tensor
    examples: Tensor
    labels: np.ndarray | None
    usage: Usage | None


class Dimensions(NamedTuple):
    """What latent dimensions are ordered by.

    `use`: of each, `[D]`, in the unit `unit`, which `measure` names. `about`: what all of them
    carry, in words. `active`: which have not collapsed.
    """

    use: Tensor
    unit: str
    measure: str
    about: str
    active: list[bool]

    @property
    def order(self) -> list[int]:
        """The dimensions, the most used first."""
        order: list[int] = torch.argsort(self.use.nan_to_num(-1.0), descending=True).tolist()
        return order


@torch.no_grad()
def keep_held_out(
    run: RunFolder, model: Model, held_out: Tensor | Samples, labels: Labels = None
) -> None:
    """Keeps of the held-out data `[N, *shape]` what a report needs: the run's folder is enough to
    make one later, wherever the data has gone."""
    count = min(_POSTERIORS, len(held_out))

    def batches() -> Iterator[Tensor]:
        for start in range(0, count, 256):
            yield held_out[start : min(start + 256, count)]

    found = [model.encode(batch) for batch in batches()]
    mu, logvar = (torch.cat(parts).float().cpu() for parts in zip(*found, strict=True))
    arrays: dict[str, Any] = {"mu": mu, "logvar": logvar, "examples": held_out[:_EXAMPLES].cpu()}
    kept = {name: value.numpy() for name, value in arrays.items()}
    if labels is not None:
        some = labels[:_POSTERIORS]
        kept["labels"] = some.cpu().numpy() if isinstance(some, Tensor) else some
    file = io.BytesIO()
    np.savez_compressed(file, **{**kept, **to_arrays(usage(model, batches()))})
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
            labels, kl = arrays.get("labels"), from_arrays(arrays)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return HeldOut(mu, logvar, examples, labels, kl)


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
    if held_out is None or len(held_out.mu) < 2:
        missing = f"{HELD_OUT} is missing" if held_out is None else "There is one held-out sample"
        missing += ": reconstructions and the latent space are not shown."
        document.section("Held-out data", [page.paragraph(missing)])
        document.section("Walks", _walks(model, None))
    else:
        report = metrics.collapse_report(held_out.mu, held_out.logvar, seed=seed)
        found = _use(model, held_out, report, _no_posterior(config))
        document.section("Reconstructions", _reconstructions(model, held_out))
        document.section("Latent dimensions", _dimensions(report, found))
        document.section("Walks", _walks(model, found))
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


def _no_posterior(config: Mapping[str, Any]) -> str:
    """What the model is called where its log-variances were never trained; else nothing."""
    objective = (config.get("objective") or {}).get("name")
    if objective == "wae":
        return "A Wasserstein autoencoder"
    plain = objective == "autoencoder" or (config.get("training") or {}).get("autoencoder")
    return "An autoencoder" if plain else ""


def _use(
    model: Model, held_out: HeldOut, report: metrics.CollapseReport, codes_of: str
) -> Dimensions:
    """The KL of each dimension where the prior has them apart, else the spread of their means."""
    active = report.active.tolist()
    if codes_of:
        about = f"{codes_of} has codes, no posterior and no KL."
        return Dimensions(report.variance, "variance", "variance of the code", about, active)
    plain = type(model).draw is VAE.draw and model.has_standard_prior()
    if plain:
        return Dimensions(report.kl, "nats", "KL (nats)", f"{report}.", active)
    about = (
        f"{sum(active)} of {len(active)} units active (variance of the mean above "
        f"{report.threshold:g})."
    )
    if model.diagonal:
        about += f" Mutual information {report.mutual_information:.2f} nats."
    kl = held_out.usage
    if kl is None:
        about += " Of the KL to its prior the run, of an older version, has kept nothing."
        return Dimensions(report.variance, "variance", "variance of mu", about, active)
    how = " (a Monte Carlo mean)" if kl.estimated else ""
    about += f" KL to the model's own prior {kl.total:.2f} nats{how}"
    if kl.kl is None:
        about += ", of all dimensions together: this prior does not have them apart."
        return Dimensions(report.variance, "variance", "variance of mu", about, active)
    about += "; each dimension's is to its own prior"
    rest = kl.total - float(kl.kl.sum())
    if not kl.estimated and rest > 0:
        about += f", and {rest:.2f} nats are in the correlations of the dimensions"
    return Dimensions(kl.kl.float(), "nats", "KL (nats)", f"{about}.", active)


def _dimensions(report: metrics.CollapseReport, found: Dimensions) -> list[Html]:
    order, active, use = found.order, found.active, found.use.tolist()
    figure, axes = chart()
    places = range(len(order))
    axes.bar(places, [use[d] for d in order], color=[SERIES[not active[d]] for d in order])
    if len(order) <= 20:
        axes.set_xticks(list(places), [str(d + 1) for d in order])
    else:
        axes.set_xticks([])
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="dimension, the most used first", ylabel=found.measure)
    dead = [str(d + 1) for d in sorted(order) if not active[d]]
    words = f"Collapsed: {', '.join(dead)}." if dead else "No dimension has collapsed."
    columns = {found.measure: use, "variance of mu": report.variance.tolist()}
    if found.measure == "variance of the code":
        columns = {found.measure: use}
    else:
        columns |= {"mean sigma": report.std.tolist(), "active": active}
    rows = [[d + 1, *(column[d] for column in columns.values())] for d in order]
    drawing = svg(figure, f"{found.measure} by dimension. {words}")
    return [
        page.paragraph(f"{found.about} {words}"),
        page.grid([page.figure(drawing, f"{found.measure} by dimension.")]),
        page.details(
            "As a table", [page.table(["dimension", *columns], rows, "Latent dimensions, by use")]
        ),
    ]


@torch.no_grad()
def _walks(model: Model, found: Dimensions | None) -> list[Html]:
    order = list(range(model.latent)) if found is None else found.order
    z = model.walk(order, WALK)
    rows = []
    for dimension, images in zip(order, _shown(model, model.mean(z)), strict=True):
        label = f"dimension {dimension + 1}"
        if found is not None:
            label += f": {float(found.use[dimension]):.2f} {found.unit}"
            label += "" if found.active[dimension] else ", collapsed"
        alt = f"E[x|z] along {label}, from -3 to 3"
        rows.append((label, _show(images, alt, columns=len(WALK))))
    how = "as they are numbered"
    if found is not None:
        how = {
            "variance of the code": "by the variance of their codes",
            "variance of mu": "by the variance of their means",
        }.get(found.measure, "by how much they are used (their KL)")
    text = (
        "E[x|z] as one dimension goes from -3 to 3 standard deviations of its prior and the others "
        f"stay at the prior's centre; dimensions {how}."
    )
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
    points, how = plane(mu)
    told = "coloured by label" if labels is not None else "without labels"
    caption = f"The posteriors' means of {len(mu)} held-out data: {how}, {told}."
    return [page.figure(scatter(points, labels, caption), caption)]


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
