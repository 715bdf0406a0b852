"""Walking one latent dimension, and whether it changes one look of the digit."""

from __future__ import annotations

import torch
from torch import Tensor

import vaefast as vf

from ..report import page
from ..report.draw import SERIES, chart, svg, tiles
from .claim import Claim, Difference, difference, judge, listed, mean_std, moments, spread
from .context import Context
from .models import KINDS, LATENT, Autoencoder

_KINDS = ("vae", "beta", "tc")
_LOOKS = ("ink", "slant", "width", "height", "place across", "place down")
_STEPS = torch.linspace(-2.5, 2.5, 11)
# Directions that are no axis, which the axes are held against.
_RANDOM = 64
_MEASURES = ("one_look", "one_look_random", "label_gap", "total_correlation", "kl", "elbo")


def run(context: Context) -> Claim:
    """Looks along axes and random directions, the label's information gap, total correlation."""
    found: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in _MEASURES} for kind in _KINDS
    }
    pictures: list[page.Html] = []
    for kind in _KINDS:
        for repeat in range(context.repeats):
            model = context.model(kind, repeat)
            used, values = _measure(context, model, context.seed_of(f"walks-{kind}", repeat))
            for name, value in values.items():
                found[kind][name].append(value)
            if repeat == 0:
                pictures += _pictures(context, model, used, KINDS[kind].name)
    axes = {
        kind: difference(found[kind]["one_look"], found[kind]["one_look_random"]) for kind in _KINDS
    }
    beside = {
        (kind, name): difference(found[kind][name], found["vae"][name])
        for kind in ("beta", "tc")
        for name in ("one_look", "label_gap")
    }
    signs = [axes[k].sign for k in _KINDS] + [d.sign for d in beside.values()]
    numbers = {
        "looks": list(_LOOKS),
        "measures": {
            KINDS[kind].name: {name: moments(values) for name, values in found[kind].items()}
            for kind in _KINDS
        },
        "axes_minus_random": {KINDS[k].name: d.numbers() for k, d in axes.items()},
        "minus_vae": {
            KINDS[kind].name: {
                name: beside[kind, name].numbers() for name in ("one_look", "label_gap")
            }
            for kind in ("beta", "tc")
        },
    }
    return Claim(
        "One dimension, one look",
        "Walking one latent dimension changes one look of the digit, the more so for a beta-VAE "
        "and a beta-TCVAE.",
        judge(signs),
        f"Of what a walk changes, the share of the look that changes most is "
        f"{spread(found['vae']['one_look'])} along the VAE's axes and "
        f"{spread(found['vae']['one_look_random'])} along random directions; beta-VAE "
        f"{spread(found['beta']['one_look'])}, beta-TCVAE {spread(found['tc']['one_look'])}.",
        numbers,
        [
            page.paragraph(_words(axes, beside, context.repeats)),
            page.table(
                ["", *(KINDS[kind].name for kind in _KINDS)],
                [
                    [title, *(spread(found[kind][name], form) for kind in _KINDS)]
                    for title, name, form in (
                        ("share of the strongest look, axes", "one_look", ".3f"),
                        ("share of the strongest look, random", "one_look_random", ".3f"),
                        ("information gap of the label", "label_gap", ".3f"),
                        ("total correlation (nats)", "total_correlation", ".2f"),
                        ("KL (nats)", "kl", ".2f"),
                        ("ELBO at beta = 1 (nats)", "elbo", ".2f"),
                    )
                ],
                f"Mean ± standard deviation of {context.repeats} trainings",
            ),
            page.grid([page.figure(_chart(found), "The share of the strongest look of a walk.")]),
            *pictures,
        ],
    )


def _words(
    axes: dict[str, Difference], beside: dict[tuple[str, str], Difference], repeats: int
) -> str:
    def those(sign: int, signs: dict[str, int]) -> str:
        return listed([KINDS[kind].name for kind, value in signs.items() if value == sign])

    along = {kind: value.sign for kind, value in axes.items()}
    gains = {kind: beside[kind, "one_look"].sign for kind in ("beta", "tc")}
    gaps = {kind: beside[kind, "label_gap"].sign for kind in ("beta", "tc")}
    compared = "of one training" if repeats == 1 else f"over {repeats} trainings"
    return (
        f"The looks are measured on the image: {listed(_LOOKS)}. Along each dimension that is "
        "used, z goes from -2.5 to 2.5 around the codes of 32 test digits, and the change of each "
        "look is taken in units of its spread over the digits; the share of the strongest is 1 "
        f"where nothing else moves, and {1 / len(_LOOKS):.2f} where all move alike. Axes do better "
        f"than random directions of the same model for: {those(1, along)}; worse for: "
        f"{those(-1, along)}. Against the VAE the share is higher for: {those(1, gains)}; lower "
        f"for: {those(-1, gains)}. The one factor that the data name is the class; its information "
        "gap is what the most telling dimension knows of it more than the next, as a part of its "
        "entropy (the mutual information gap of Chen et al. 2018, for one factor). It is higher "
        f"than the VAE's for: {those(1, gaps)}; lower for: {those(-1, gaps)}. The rest is "
        f"undecided, {compared}. A class is no simple look: no gap near 1 can be expected."
    )


@torch.no_grad()
def _measure(context: Context, model: Autoencoder, seed: int) -> tuple[list[int], dict[str, float]]:
    """The dimensions in use, by their KL, and the measures."""
    test, train = context.digits.test, context.digits.train
    mu, logvar = model.posterior(test.x)
    kl = vf.metrics.kl_per_dimension(mu, logvar)
    active = vf.metrics.active_units(mu)
    used = [d for d in kl.argsort(descending=True).tolist() if active[d]]
    z, divergence = model.sample(test.x, 16, seed=seed)
    elbo = (model.log_mass(z, test.x) - divergence).mean()
    train_mu, train_logvar = model.posterior(train.x)
    z = vf.rsample(train_mu, train_logvar, seed=seed)
    terms = vf.tc_terms(z, train_mu, train_logvar, dataset_size=len(z))
    eye = torch.eye(LATENT)[used]
    generator = torch.Generator().manual_seed(seed)
    random = torch.zeros(_RANDOM, LATENT)
    # Among the dimensions in use: others would change nothing at all.
    random[:, used] = torch.randn(_RANDOM, len(used), generator=generator)
    random = torch.nn.functional.normalize(random, dim=1)
    unit = looks(test.x).std(0)
    return used, {
        "one_look": _one_look(model, mu[:32], eye, unit),
        "one_look_random": _one_look(model, mu[:32], random, unit),
        "label_gap": _label_gap(train_mu, train.labels),
        "total_correlation": float(terms.tc.mean()),
        "kl": float(divergence.mean()),
        "elbo": float(elbo),
    }


def _one_look(model: Autoencoder, start: Tensor, directions: Tensor, unit: Tensor) -> float:
    """The mean share of the look that changes most along each of `directions` `[M, L]`."""
    if not bool(directions.any()):
        # No dimension is in use, and nothing moves.
        return 1.0 / len(_LOOKS)
    # The direction's own part of the start is taken out, so that a walk is -2.5 to 2.5 for all.
    along = start @ directions.T
    base = start[None] - along.T[..., None] * directions[:, None]
    z = base[:, :, None] + _STEPS[:, None] * directions[:, None, None]
    moved = looks(model.mean(z).clamp(0, 1)) / unit
    change = moved.std(2).mean(1)
    return float((change.amax(1) / change.sum(1).clamp(min=1e-9)).mean())


def looks(x: Tensor) -> Tensor:
    """Of images `[..., 64]`: ink, slant, width, height and place, `[..., 6]`.

    Ink is the mean; the rest are moments of the ink: slant is its covariance of column and row by
    the rows' variance, width and height the standard deviations, place the means.
    """
    ink = x.sum(-1)
    share = x / ink.clamp(min=1e-6).unsqueeze(-1)
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    row, column = row.flatten(), column.flatten()
    across, down = share @ column, share @ row
    width = (share @ column.square() - across.square()).clamp(min=1e-6)
    height = (share @ row.square() - down.square()).clamp(min=1e-6)
    slant = (share @ (row * column) - across * down) / height
    return torch.stack([ink / 64, slant, width.sqrt(), height.sqrt(), across, down], -1)


def _label_gap(mu: Tensor, labels: Tensor) -> float:
    """(I(z_first; y) - I(z_second; y)) / H(y), each dimension in 20 bins of equal counts."""
    from sklearn.metrics import mutual_info_score

    edges = torch.linspace(0, 1, 21)[1:-1]
    shared = sorted(
        float(mutual_info_score(labels.numpy(), torch.bucketize(z, z.quantile(edges)).numpy()))
        for z in mu.T.contiguous()
    )
    entropy = float(mutual_info_score(labels.numpy(), labels.numpy()))
    return (shared[-1] - shared[-2]) / entropy


def _pictures(context: Context, model: Autoencoder, used: list[int], name: str) -> list[page.Html]:
    mu, logvar = model.posterior(context.digits.test.x)
    kl = vf.metrics.kl_per_dimension(mu, logvar)
    z = torch.zeros(len(used), len(_STEPS), LATENT)
    for row, dimension in enumerate(used):
        z[row, :, dimension] = _STEPS
    images = model.mean(z).view(len(used), len(_STEPS), 1, 8, 8)
    rows = [
        (
            f"dimension {dimension + 1}: {float(kl[dimension]):.2f} nats",
            tiles(strip, columns=len(_STEPS), alt=f"{name}, dimension {dimension + 1}"),
        )
        for dimension, strip in zip(used, images, strict=True)
    ]
    dead = LATENT - len(used)
    text = (
        f"{name}: each dimension in use from -2.5 to 2.5, the others at 0, by its KL; {dead} of "
        f"{LATENT} are not used."
    )
    return [page.details(text, [page.strips(rows)], open=name == "VAE")]


def _chart(found: dict[str, dict[str, list[float]]]) -> page.Html:
    figure, axes = chart()
    for index, (name, label) in enumerate(
        (("one_look", "along axes"), ("one_look_random", "along random directions"))
    ):
        means, stds = zip(*(mean_std(found[kind][name]) for kind in _KINDS), strict=True)
        x = [place + 0.38 * index - 0.19 for place in range(len(_KINDS))]
        axes.bar(
            x,
            means,
            0.36,
            yerr=[0 if s != s else s for s in stds],
            color=SERIES[index],
            hatch=("", "//")[index],
            label=label,
            capsize=3,
        )
    axes.set_xticks(range(len(_KINDS)), [KINDS[kind].name for kind in _KINDS])
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="share")
    axes.margins(y=0.3)
    axes.legend()
    return svg(figure, "Share of the strongest look by model; the table has the numbers")
