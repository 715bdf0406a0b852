"""The networks on either side of the code: a perceptron and two convolutional ones, of any size.

A backbone is a function of what `Sizes` holds that gives the encoder, from the network's input to
`[B, features]`, and the decoder, from `[B, code]` to the head's output. `register_backbone` makes
one of your own known to `arch=`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from .. import InputError
from ..registry import Registry


class Sizes(NamedTuple):
    """What a backbone is built for.

    `inputs` and `outputs`: shapes `[D]` or `[C, H, W]` of one sample at either end. `features`:
    what the encoder gives. `code`: what the decoder takes. `width`, `depth`: None for the
    backbone's own.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    features: int
    code: int
    width: int | None
    depth: int | None


Builder = Callable[[Sizes], tuple[nn.Module, nn.Module]]
BACKBONES: Registry[Builder] = Registry("arch")
register_backbone = BACKBONES.register


def backbones() -> tuple[str, ...]:
    """The names that `arch=` takes."""
    return tuple(BACKBONES.entries)


def build_backbone(arch: str, sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder.

    Raises:
        InputError: there is no such backbone, or it does not fit the shapes.
    """
    build = BACKBONES.find(arch)
    for name in ("width", "depth"):
        value = getattr(sizes, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    return build(sizes)


@register_backbone("mlp")
def _mlp(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """`depth` hidden layers (2) of `width` units (256) on either side."""
    hidden, depth = sizes.width or 256, sizes.depth or 2

    def layers(first: int, last: int) -> list[nn.Module]:
        widths = [first, *[hidden] * depth]
        inner = [
            layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())
        ]
        return [*inner, nn.Linear(hidden, last)]

    encoder = nn.Sequential(nn.Flatten(), *layers(math.prod(sizes.inputs), sizes.features))
    return encoder, nn.Sequential(*layers(sizes.code, math.prod(sizes.outputs)))


@register_backbone("conv")
def _conv(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """A convolution per resolution; the first has `width` channels (32)."""
    channels, levels, widths = _levels("conv", sizes)
    if sizes.depth is not None:
        raise InputError("arch conv has one convolution per resolution and no depth; resnet has")
    down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
    up: list[nn.Module] = []
    for level in range(1, len(levels)):
        down += [nn.Conv2d(widths[level - 1], widths[level], 3, stride=2, padding=1), nn.SiLU()]
        # Nearest upsampling and a convolution: no checkerboard, and odd sizes come out right.
        up[:0] = [
            nn.Upsample(levels[level - 1]),
            nn.Conv2d(widths[level], widths[level - 1], 3, padding=1),
            nn.SiLU(),
        ]
    deepest = (widths[-1], *levels[-1])
    flat = math.prod(deepest)
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, sizes.features))
    decoder = nn.Sequential(
        nn.Linear(sizes.code, flat),
        nn.SiLU(),
        nn.Unflatten(1, deepest),
        *up,
        nn.Conv2d(widths[0], sizes.outputs[0], 3, padding=1),
    )
    return encoder, decoder


@register_backbone("resnet")
def _resnet(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """`depth` residual blocks (2) per resolution; the first have `width` channels (32)."""
    channels, levels, widths = _levels("resnet", sizes)
    depth = sizes.depth or 2
    down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
    up: list[nn.Module] = []
    for level, width in enumerate(widths):
        if level:
            down.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
            up[:0] = [
                nn.Upsample(levels[level - 1]),
                nn.Conv2d(width, widths[level - 1], 3, padding=1),
            ]
        down += [Residual(width) for _ in range(depth)]
        up[:0] = [Residual(width) for _ in range(depth)]
    deepest = (widths[-1], *levels[-1])
    flat = math.prod(deepest)
    encoder = nn.Sequential(
        *down, _norm(widths[-1]), nn.SiLU(), nn.Flatten(), nn.Linear(flat, sizes.features)
    )
    decoder = nn.Sequential(
        nn.Linear(sizes.code, flat),
        nn.Unflatten(1, deepest),
        *up,
        _norm(widths[0]),
        nn.SiLU(),
        nn.Conv2d(widths[0], sizes.outputs[0], 3, padding=1),
    )
    return encoder, decoder


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), which begins as the identity.

    He et al. 2016, "Identity Mappings in Deep Residual Networks", with group normalisation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(
            _norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            _norm(channels),
            nn.SiLU(),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Of `[B, channels, H, W]`, its shape."""
        return x + self.body(x)  # type: ignore[no-any-return]


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def _levels(arch: str, sizes: Sizes) -> tuple[int, list[tuple[int, ...]], list[int]]:
    """The input's channels, the resolutions, halved until the smaller side is 4 or less, and the
    channels at each."""
    if len(sizes.inputs) != 3:
        raise InputError(
            f"arch {arch} takes images [C, H, W], got samples of shape {list(sizes.inputs)}"
        )
    channels, *size = sizes.inputs
    levels, first = [tuple(size)], sizes.width or 32
    while min(levels[-1]) > 4 and len(levels) < 6:
        levels.append(tuple(math.ceil(s / 2) for s in levels[-1]))
    return channels, levels, [min(first * 2**level, 8 * first) for level in range(len(levels))]
