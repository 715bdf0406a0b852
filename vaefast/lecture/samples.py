"""New digits from N(0, I), of a VAE and of an autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor

import vaefast as vf

from ..report import page
from ..report.draw import tiles
from .claim import Claim, difference, judge, mean_std, moments, spread
from .context import Context
from .models import LATENT

_SHOWN = 40


def run(context: Context) -> Claim:
    """How far decoded N(0, I) is from held-out digits, for both, and how new it is."""
    digits = context.digits
    test, train = digits.test.x, digits.train.x
    count = len(test)
    rows: dict[str, list[float]] = {name: [] for name in ("vae", "autoencoder", "fitted", "data")}
    near: list[float] = []
    shown: dict[str, Tensor] = {}
    spreads: list[float] = []
    for repeat in range(context.repeats):
        vae, plain = (context.model(kind, repeat) for kind in ("vae", "autoencoder"))
        generator = torch.Generator().manual_seed(context.seed_of("samples", repeat))
        z = torch.randn(count, LATENT, generator=generator)
        codes = plain.code(train)
        spreads.append(float(codes.std(0).mean()))
        covariance = torch.cov(codes.T) + 1e-6 * torch.eye(LATENT)
        fitted = codes.mean(0) + z @ torch.linalg.cholesky(covariance).T
        made = {
            "vae": vae.mean(z).clamp(0, 1),
            "autoencoder": plain.mean(z).clamp(0, 1),
            "fitted": plain.mean(fitted).clamp(0, 1),
            "data": train[torch.randperm(len(train), generator=generator)[:count]],
        }
        for name, images in made.items():
            rows[name].append(float(vf.mmd(images, test)))
        near.append(float(torch.cdist(made["vae"], train).amin(1).mean()))
        shown = shown or made
    held_out_near = float(torch.cdist(test, train).amin(1).mean())
    gap = difference(rows["autoencoder"], rows["vae"])
    names = {
        "vae": "VAE, z ~ N(0, I)",
        "autoencoder": "autoencoder, the same z",
        "fitted": "autoencoder, z from a Gaussian fitted to its codes",
        "data": "as many training digits",
    }
    numbers = {
        "squared_mmd_to_test_digits": {name: moments(values) for name, values in rows.items()},
        "autoencoder_minus_vae": gap.numbers(),
        "distance_to_nearest_training_digit": {
            "vae_samples": mean_std(near)[0],
            "test_digits": held_out_near,
        },
        "std_of_autoencoder_codes": mean_std(spreads)[0],
    }
    times = mean_std(rows["autoencoder"])[0] / mean_std(rows["vae"])[0]
    ratio = mean_std(rows["fitted"])[0] / mean_std(rows["vae"])[0]
    fitted_words = (
        "A Gaussian fitted to the codes afterwards brings it nearer than the VAE"
        if ratio < 1
        else f"A Gaussian fitted to the codes afterwards leaves it {ratio:.1f} times as far as the "
        "VAE"
    )
    new = (
        "no nearer to a training digit than digits that it never saw"
        if mean_std(near)[0] >= held_out_near
        else "nearer to a training digit than digits that it never saw"
    )
    return Claim(
        "New digits from noise",
        "The decoder turns z ~ N(0, I) into new digits; an autoencoder's decoder does not.",
        judge([gap.sign]),
        f"From the test digits the VAE's samples are {spread(rows['vae'], '.4f')} away (squared "
        f"MMD), the autoencoder's at the same z {spread(rows['autoencoder'], '.4f')}, "
        f"{times:.1f} times as far.",
        numbers,
        [
            page.paragraph(
                "The VAE's KL pulls every posterior towards N(0, I), so that codes drawn there lie "
                "where the decoder was trained. Nothing tells an autoencoder where to put its "
                f"codes: their standard deviation is {mean_std(spreads)[0]:.1f} a dimension, not "
                f"1. {fitted_words}. The measure is vf.mmd between {count} decoded means and the "
                f"{count} test digits; training digits, which are what is to be imitated, give "
                f"{spread(rows['data'], '.4f')}. The VAE's samples are {new}: their mean distance "
                f"to the nearest is {mean_std(near)[0]:.2f}, that of the test digits "
                f"{held_out_near:.2f}."
            ),
            page.grid(
                page.figure(
                    tiles(
                        shown[name][:_SHOWN].view(-1, 1, 8, 8),
                        columns=8,
                        alt=f"{_SHOWN} images: {title}",
                    ),
                    title,
                )
                for name, title in names.items()
            ),
            page.table(
                ["", "squared MMD to the test digits"],
                [[title, spread(rows[name], ".4f")] for name, title in names.items()],
                f"Mean ± standard deviation of {context.repeats} trainings",
            ),
        ],
    )
