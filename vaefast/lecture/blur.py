"""Gaussian decoders blur: sharpness of what is sampled, for several likelihoods."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import vaefast as vf

from ..report import page
from ..report.draw import SERIES, chart, svg, tiles
from .claim import Claim, difference, judge, listed, mean_std, moments, spread
from .context import PIXELS, Context
from .models import KINDS, LATENT

_GAUSSIAN = ("fixed", "learned", "optimal", "per_pixel", "full")
_KINDS = (*_GAUSSIAN, "vae")
_SAMPLES = 360


def run(context: Context) -> Claim:
    """Sharpness of means and of draws, bits and distance to the data, by likelihood."""
    test = context.digits.test.x
    reference = sharpness(test)
    names = ("mean", "draw", "reconstruction", "bits", "mmd")
    found: dict[str, dict[str, list[float]]] = {k: {n: [] for n in names} for k in _KINDS}
    deviation: dict[str, list[float]] = {kind: [] for kind in ("learned", "optimal", "full")}
    shown: dict[str, tuple[Tensor, Tensor]] = {}
    for kind in _KINDS:
        for repeat in range(context.repeats):
            model = context.model(kind, repeat)
            seed = context.seed_of("blur", repeat)
            generator = torch.Generator().manual_seed(seed)
            z = torch.randn(_SAMPLES, LATENT, generator=generator)
            mean, draw = model.mean(z).clamp(0, 1), model.draw(z, seed)
            rows = found[kind]
            rows["mean"].append(sharpness(mean) / reference)
            rows["draw"].append(sharpness(draw) / reference)
            rebuilt = model.mean(model.code(test)).clamp(0, 1)
            rows["reconstruction"].append(sharpness(rebuilt) / reference)
            rows["bits"].append(_bits(context, kind, repeat, seed))
            rows["mmd"].append(float(vf.mmd(draw, test)))
            if kind in deviation:
                deviation[kind].append(float(model.std()))
            shown.setdefault(kind, (mean[:16], draw[:16]))
    ones = [1.0] * context.repeats
    blur = {kind: difference(ones, found[kind]["mean"]) for kind in _KINDS}
    numbers = {
        "sharpness_is": "mean squared Laplacian, as a part of the test digits'",
        "measures": {
            KINDS[kind].name: {name: moments(values) for name, values in rows.items()}
            for kind, rows in found.items()
        },
        "standard_deviation": {KINDS[k].name: mean_std(v)[0] for k, v in deviation.items()},
    }
    return Claim(
        "Gaussian decoders blur",
        "What a Gaussian decoder makes of z ~ N(0, I) is less sharp than the data.",
        judge([blur[kind].sign for kind in _GAUSSIAN]),
        "The means' sharpness, the test digits' being 1, is "
        + listed([f"{spread(found[k]['mean'])} ({KINDS[k].name})" for k in _GAUSSIAN])
        + f"; with the discretised likelihood {spread(found['vae']['mean'])}.",
        numbers,
        [
            page.paragraph(_words(found, deviation)),
            page.table(
                ["", "means", "draws", "reconstructions", "bits per dim.", "squared MMD"],
                [
                    [
                        _title(kind),
                        *(
                            spread(found[kind][name], form)
                            for name, form in (
                                ("mean", ".2f"),
                                ("draw", ".2f"),
                                ("reconstruction", ".2f"),
                                ("bits", ".3f"),
                                ("mmd", ".4f"),
                            )
                        ),
                    ]
                    for kind in _KINDS
                ],
                "Sharpness (test digits: 1) of the means E[x|z] and of draws x ~ p(x|z) at "
                "z ~ N(0, I) and of reconstructions; IWAE's bound with K = 100 on the 17 levels; "
                "distance of the draws from the test digits",
            ),
            page.grid([page.figure(_chart(found), "Sharpness of the means; the line: data.")]),
            page.grid(
                page.figure(
                    tiles(
                        torch.cat(shown[kind]).view(-1, 1, 8, 8),
                        columns=8,
                        alt=f"{_title(kind)}: 16 means, then 16 draws",
                    ),
                    f"{_title(kind)}: two rows of means, then draws at the same z.",
                )
                for kind in _KINDS
            ),
        ],
    )  # fmt: skip


def _title(kind: str) -> str:
    return "discretised logistic" if kind == "vae" else KINDS[kind].name


def _words(found: dict[str, dict[str, list[float]]], deviation: dict[str, list[float]]) -> str:
    sharp = {kind: mean_std(found[kind]["mean"])[0] for kind in _KINDS}
    bits = {kind: mean_std(found[kind]["bits"])[0] for kind in _KINDS}
    drawn = [k for k in _KINDS if mean_std(found[k]["draw"])[0] > 1]
    low, high = min(sharp, key=sharp.__getitem__), max(sharp, key=sharp.__getitem__)
    best, worst = min(bits, key=bits.__getitem__), max(bits, key=bits.__getitem__)
    noisy = (
        f"Draws are sharper than the data for: {listed([_title(k) for k in drawn])}, which is "
        "noise, pixel by pixel, and no stroke. "
        if drawn
        else "No decoder's draws are sharper than the data. "
    )
    return (
        "Where several digits are possible for a z, a decoder with independent pixels answers "
        "with their mean, and a mean of shifted strokes has softer edges. Sharpness is the mean "
        f"squared Laplacian of the image. The softest means are those of: {_title(low)}, the "
        f"sharpest those of: {_title(high)}. {noisy}A fixed variance of 1 is the squared error "
        "as it is; learned, the standard deviation comes out at "
        f"{mean_std(deviation['learned'])[0]:.3f}, and at its optimum over each batch at "
        f"{mean_std(deviation['optimal'])[0]:.3f}, in units of the whole range. So that all can "
        "be compared, each Gaussian's mass on the 17 levels is taken in place of its density: in "
        f"bits per dimension {_title(best)} is best, with {bits[best]:.3f}, and {_title(worst)} "
        f"worst, with {bits[worst]:.3f}. A full-covariance posterior changes the learned "
        f"variance's {bits['learned']:.3f} to {bits['full']:.3f}."
    )


@torch.no_grad()
def _bits(context: Context, kind: str, repeat: int, seed: int) -> float:
    model = context.model(kind, repeat)
    found = vf.log_marginal(
        lambda x, k: model.log_weights(x, k, seed=seed), context.digits.test.x, 100, chunk=100
    )
    return float(-found.mean()) / (PIXELS * math.log(2))


def sharpness(images: Tensor) -> float:
    """The mean squared Laplacian of images `[N, 64]` over their inner pixels."""
    x = images.view(-1, 8, 8)
    inner = x[:, 1:-1, 1:-1]
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return float((around - 4 * inner).square().mean())


def _chart(found: dict[str, dict[str, list[float]]]) -> page.Html:
    figure, axes = chart(height=3.1)
    means, stds = zip(*(mean_std(found[kind]["mean"]) for kind in _KINDS), strict=True)
    titles = [_title(kind).replace(", ", ",\n") for kind in _KINDS]
    axes.barh(titles, means, xerr=[0 if s != s else s for s in stds], color=SERIES[0], capsize=3)
    axes.axvline(1.0, color=SERIES[1])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="sharpness, test digits: 1")
    return svg(figure, "Sharpness of the means by likelihood; the table has the numbers")
