"""Few labels: classifiers on what encoders learned without any."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import vaefast as vf

from ..report import page
from ..report.draw import SERIES, chart, dash, svg
from .claim import Claim, Difference, difference, judge, listed, mean_std, moments, spread
from .context import Context, Part
from .models import LATENT, perceptron

_NAMES = {
    "vae": "VAE's means",
    "autoencoder": "autoencoder's codes",
    "pixels": "raw pixels",
    "scratch": "same network from scratch",
}


def run(context: Context) -> Claim:
    """Accuracy on 10 to 100 labels of four classifiers, over draws of the labels."""
    counts = (10, 50) if context.quick else (10, 20, 50, 100)
    draws = context.draws
    train, test = context.digits.train, context.digits.test
    features = {
        (kind, repeat): [context.model(kind, repeat).code(part.x) for part in (train, test)]
        for kind in ("vae", "autoencoder")
        for repeat in range(context.repeats)
    }
    found: dict[str, dict[int, list[float]]] = {name: {c: [] for c in counts} for name in _NAMES}
    for draw in range(draws):
        repeat = draw % context.repeats
        for count in counts:
            rows = _subset(train.labels, count, context.seed_of("labels", draw))
            for kind in ("vae", "autoencoder"):
                left, right = features[kind, repeat]
                score = _logistic(left, right, rows, train.labels, test.labels)
                found[kind][count].append(score)
            score = _logistic(train.x, test.x, rows, train.labels, test.labels)
            found["pixels"][count].append(score)
            seed = context.seed_of("scratch", draw)
            found["scratch"][count].append(_scratch(train, test, rows, seed))
    against = {
        other: {c: difference(found["vae"][c], found[other][c]) for c in counts}
        for other in ("pixels", "scratch", "autoencoder")
    }
    holds = judge([d.sign for other in ("pixels", "scratch") for d in against[other].values()])
    used = [
        int(vf.metrics.active_units(features["vae", repeat][0]).sum())
        for repeat in range(context.repeats)
    ]
    numbers = {
        "dimensions_in_use": moments(used),
        "draws": draws,
        "trainings_of_each_encoder": context.repeats,
        "accuracy": {
            name: {str(c): moments(scores) for c, scores in by_count.items()}
            for name, by_count in found.items()
        },
        "vae_minus": {
            other: {str(c): d.numbers() for c, d in by_count.items()}
            for other, by_count in against.items()
        },
    }
    return Claim(
        "Features without labels",
        "An encoder that was trained without labels helps where labels are few: a classifier on "
        "its codes beats one on raw pixels, and the same network trained from scratch.",
        holds,
        "Against " + "; against ".join(_against(_NAMES[o], against[o]) for o in against) + ".",
        numbers,
        [
            page.paragraph(_words(found, counts, draws, used)),
            page.grid([page.figure(_chart(found, counts), "Accuracy on 360 test digits; bars are "
            "standard deviations over the draws of labels.")]),
            page.table(
                ["classifier on", *(f"{c} labels" for c in counts)],
                [
                    [_NAMES[name], *(spread([100 * s for s in found[name][c]], ".1f")
                    for c in counts)]
                    for name in _NAMES
                ],
                f"Accuracy in percent, mean ± standard deviation of {draws} draws of the labels",
            ),
        ],
    )  # fmt: skip


def _against(name: str, by_count: dict[int, Difference]) -> str:
    words = {1: "better", -1: "worse", 0: "no different"}
    grouped: dict[str, list[str]] = {}
    for count, found in by_count.items():
        grouped.setdefault(words[found.sign], []).append(str(count))
    parts = [f"{word} with {listed(counts)} labels" for word, counts in grouped.items()]
    return f"{name}: {listed(parts)}"


def _words(
    found: dict[str, dict[int, list[float]]], counts: Sequence[int], draws: int, used: Sequence[int]
) -> str:
    few, most = counts[0], counts[-1]
    best = {c: max(found, key=lambda name: mean_std(found[name][c])[0]) for c in counts}
    lead = listed([f"{_NAMES[best[c]]} with {c}" for c in counts])
    again = "one training" if len(used) == 1 else f"{len(used)} trainings"
    return (
        f"Each encoder saw all 1,197 training digits and no label ({again}); frozen, its "
        f"{LATENT} numbers go into a logistic regression on a few labels, as many of each class. "
        "The pixels go into the same regression; the network from scratch is the encoder's, with "
        "new weights and a linear layer, trained on the labelled digits alone. Every classifier "
        f"has the same {draws} draws of labels, and is called better or worse where the mean of "
        "the paired differences is further than two standard errors from 0. Of the VAE's "
        f"{LATENT} dimensions {spread(used, '.1f')} are in use, and its means hold what these "
        "hold; nothing keeps an autoencoder from using all. The most accurate "
        f"are: {lead} labels. With {few} labels the VAE's means give "
        f"{mean_std(found['vae'][few])[0]:.1%} against {mean_std(found['pixels'][few])[0]:.1%} of "
        f"the pixels, with {most} {mean_std(found['vae'][most])[0]:.1%} against "
        f"{mean_std(found['pixels'][most])[0]:.1%}."
    )


def _chart(found: dict[str, dict[int, list[float]]], counts: Sequence[int]) -> page.Html:
    figure, axes = chart(height=3.3)
    for index, (name, by_count) in enumerate(found.items()):
        # Side by side, so that the bars can be told apart.
        x = [count * 1.05 ** (index - 1.5) for count in counts]
        means, stds = zip(*(mean_std(by_count[c]) for c in counts), strict=True)
        axes.errorbar(
            x,
            [100 * m for m in means],
            [0 if s != s else 100 * s for s in stds],
            color=SERIES[index],
            linestyle=dash(index),
            marker="osD^"[index],
            markersize=4,
            capsize=2,
            label=_NAMES[name],
        )
    axes.set_xscale("log")
    axes.set_xticks(list(counts), [str(c) for c in counts])
    axes.minorticks_off()
    axes.set(xlabel="labels", ylabel="accuracy (%)")
    axes.legend()
    return svg(figure, "Accuracy by number of labels for four classifiers; the table has it all")


def _subset(labels: Tensor, count: int, seed: int) -> Tensor:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    each = count // 10
    return torch.cat([order[labels[order] == digit][:each] for digit in range(10)])


def _logistic(
    train: Tensor, test: Tensor, rows: Tensor, train_labels: Tensor, test_labels: Tensor
) -> float:
    from sklearn.linear_model import LogisticRegression

    # One scale for all features: each by its own would blow up those that carry nothing.
    scale = train.std()
    model = LogisticRegression(max_iter=2000)
    model.fit((train[rows] / scale).double().numpy(), train_labels[rows].numpy())
    return float(model.score((test / scale).double().numpy(), test_labels.numpy()))


def _scratch(train: Part, test: Part, rows: Tensor, seed: int) -> float:
    """The encoder's network with a linear layer on its codes, trained on the labelled digits."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = nn.Sequential(perceptron(64, LATENT), nn.Linear(LATENT, 10))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, labels = train.x[rows], train.labels[rows]
    for _ in range(150):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        adam.step()
    with torch.no_grad():
        return float((model(test.x).argmax(1) == test.labels).double().mean())
