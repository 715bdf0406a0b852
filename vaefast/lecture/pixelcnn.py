"""A small PixelCNN beside the VAE: bits per dimension, and the time of a sample."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaefast as vf

from ..report import page
from ..report.draw import tiles
from .claim import Claim, difference, judge, moments, spread
from .context import LEVELS, PIXELS, Context, Digits
from .fit import fit
from .models import LATENT, Autoencoder

_CHANNELS, _BLOCKS, _SAMPLES = 32, 4, 64


class PixelCNN(nn.Module):
    """P(x) = prod_i P(x_i | x_1 .. x_i-1) in the order of reading, 17 classes a pixel.

    Source: van den Oord, Kalchbrenner & Kavukcuoglu 2016, "Pixel Recurrent Neural Networks".
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = _Masked(1, _CHANNELS, 5, itself=False)
        self.blocks = nn.ModuleList(_Block() for _ in range(_BLOCKS))
        self.last = nn.Sequential(nn.SiLU(), nn.Conv2d(_CHANNELS, LEVELS, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 17, 64]` of each pixel given those before it, of x `[B, 64]`."""
        hidden = self.first(2 * x.view(-1, 1, 8, 8) - 1)
        for block in self.blocks:
            hidden = block(hidden)
        return self.last(hidden).flatten(2)  # type: ignore[no-any-return]

    def loss(self, x: Tensor) -> Tensor:
        """-log P(x), `[B]`."""
        levels = (16 * x).round().long()
        return vf.nll(self(x), levels, "categorical", reduction="sample")

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Digits `[count, 64]`, a pixel after the other."""
        x = torch.zeros(count, PIXELS)
        for pixel in range(PIXELS):
            chances = torch.softmax(self(x)[:, :, pixel], 1)
            x[:, pixel] = torch.multinomial(chances, 1, generator=generator)[:, 0] / 16
        return x


class _Masked(nn.Conv2d):
    """A convolution that sees the pixels before this one, and this one where `itself` is set."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, *, itself: bool) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.ones(size, size)
        mask[size // 2, size // 2 + itself :] = 0
        mask[size // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        half = _CHANNELS // 2
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(_CHANNELS, half, 1),
            nn.SiLU(),
            _Masked(half, half, 3, itself=True),
            nn.SiLU(),
            nn.Conv2d(half, _CHANNELS, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


def run(context: Context) -> Claim:
    """Bits per dimension of the same test digits, seconds per sample, in one table."""
    digits, test = context.digits, context.digits.test.x
    scale = PIXELS * math.log(2)
    most = context.samples
    bits: dict[str, list[float]] = {"pixelcnn": [], "vae": []}
    pairs: list[tuple[Tensor, Tensor]] = []
    models: list[tuple[PixelCNN, Autoencoder]] = []
    for repeat in range(min(context.repeats, 2)):
        seed = context.seed_of("pixelcnn", repeat)
        pixelcnn, vae = _train(context, seed, repeat), context.model("vae", repeat)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            bound = -vf.log_marginal(vae, test, most, chunk=50) / scale
        exact = pixelcnn.loss(test).double() / scale
        bits["pixelcnn"].append(float(exact.mean()))
        bits["vae"].append(float(bound.mean()))
        pairs.append((bound, exact))
        models.append((pixelcnn, vae))
    alone = _independent(digits) / scale
    # Digit by digit, over the trainings' means: what is left is the spread of the digits.
    bound, exact = (torch.stack(values).mean(0) for values in zip(*pairs, strict=True))
    gap = difference(bound.tolist(), exact.tolist())
    shown, seconds = _sample(*models[0], context.seed_of("pixelcnn"))
    shown["data"] = test[:_SAMPLES]
    times = seconds["pixelcnn"] / seconds["vae"]
    parameters = [sum(p.numel() for p in model.parameters()) for model in models[0]]
    numbers = {
        "bits_per_dimension": {
            "pixelcnn": moments(bits["pixelcnn"]),
            "vae_at_most": moments(bits["vae"]),
            "independent_pixels": alone,
            "uniform": math.log2(LEVELS),
        },
        "vae_minus_pixelcnn": gap.numbers(),
        "seconds_for_64_samples": seconds,
        "times_slower": times,
        "parameters": dict(zip(("pixelcnn", "vae"), parameters, strict=True)),
    }
    words = {1: "fewer bits than", -1: "more bits than", 0: "as many bits as"}[gap.sign]
    return Claim(
        "PixelCNN: better bits, slower samples",
        "A small PixelCNN gives better bits per dimension than the VAE, and its samples take "
        "longer.",
        judge([gap.sign, times > 1]),
        f"PixelCNN needs {words} the VAE: {spread(bits['pixelcnn'], '.3f')} per dimension "
        f"against at most {spread(bits['vae'], '.3f')}. Its {_SAMPLES} samples take {times:.0f} "
        "times as long.",
        numbers,
        [
            page.paragraph(
                "Both give probabilities to the same 17 levels of the same test digits. PixelCNN's "
                "are exact, a product over the pixels in the order of reading; the VAE's are "
                f"IWAE's bound with K = {most:,}, so that its true bits may be fewer. The mean "
                f"difference is {gap.mean:.3f} bits, with a standard error of {gap.error:.3f} over "
                f"the digits. Pixels that ask no other need {alone:.3f}, and all levels alike "
                f"{math.log2(LEVELS):.3f}. For a sample PixelCNN runs its network {PIXELS} times, "
                "once for each pixel; the VAE decodes once. Times are medians on this machine, "
                f"with {torch.get_num_threads()} thread(s)."
            ),
            page.table(
                ["", "bits per dimension", f"time of {_SAMPLES} samples", "parameters"],
                [
                    [
                        "PixelCNN",
                        spread(bits["pixelcnn"], ".3f"),
                        f"{1e3 * seconds['pixelcnn']:.1f} ms",
                        f"{parameters[0]:,}",
                    ],
                    [
                        "VAE, discretised logistic",
                        "at most " + spread(bits["vae"], ".3f"),
                        f"{1e3 * seconds['vae']:.2f} ms",
                        f"{parameters[1]:,}",
                    ],
                    ["pixels alone", f"{alone:.3f}", "–", f"{PIXELS * (LEVELS - 1):,}"],
                ],
                f"Test digits, mean ± standard deviation of {len(models)} trainings",
            ),
            page.grid(
                page.figure(
                    tiles(
                        shown[name].view(-1, 1, 8, 8), columns=8, alt=f"{_SAMPLES} samples, {title}"
                    ),
                    title,
                )
                for name, title in (
                    ("pixelcnn", "Samples of PixelCNN."),
                    ("vae", "Samples of the VAE, x ~ p(x|z)."),
                    ("data", "Test digits."),
                )
            ),
        ],
    )


def _sample(
    pixelcnn: PixelCNN, vae: Autoencoder, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Samples of both, and the seconds that they take."""
    generator = torch.Generator().manual_seed(seed)

    def decode() -> Tensor:
        return vae.draw(torch.randn(_SAMPLES, LATENT, generator=generator), seed)

    def predict() -> Tensor:
        return pixelcnn.sample(_SAMPLES, generator)

    shown = {"vae": decode(), "pixelcnn": predict()}
    return shown, {"vae": _median(decode, 20), "pixelcnn": _median(predict, 5)}


def _train(context: Context, seed: int, repeat: int) -> PixelCNN:
    digits = context.digits

    def train(model: PixelCNN) -> None:
        context.say(f"training: PixelCNN, {repeat + 1} of {min(context.repeats, 2)}")
        fit(
            model,
            lambda x: model.loss(x).mean(),
            lambda: model.loss(digits.validation.x).mean(),
            digits.train.x,
            epochs=max(1, context.epochs // 4),
            seed=seed,
        )

    return context.trained(f"pixelcnn-{repeat}", PixelCNN, train, seed)


def _independent(digits: Digits) -> float:
    """Nats per test digit where each pixel has its own table of 17 shares and no other is asked."""
    train, test = ((16 * part.x).round().long() for part in (digits.train, digits.test))
    counts = F.one_hot(train, LEVELS).sum(0) + 1.0
    shares = counts / counts.sum(1, keepdim=True)
    return float(-torch.log(shares[torch.arange(PIXELS), test]).double().sum(1).mean())


def _median(call: Callable[[], Tensor], rounds: int) -> float:
    call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
