"""VAEs with a multilayer perceptron or a convolutional network on either side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..likelihoods import Gaussian, Laplace, Likelihood, Params, registered, resolve
from . import InputError

Architecture = Literal["mlp", "conv"]

# One output per pixel and one learned scale for all: the usual choice for images, where a scale
# per pixel shrinks on pixels that never change and outweighs the rest.
_LEARNED_SCALE: dict[str, Callable[[Tensor], Likelihood]] = {
    "gaussian": lambda scale: Gaussian(std=scale),
    "laplace": lambda scale: Laplace(scale=scale),
}


class VAE(nn.Module):
    """q(z|x) = N(mu(x), exp(logvar(x))) and p(x|z) of the named likelihood.

    Args:
        shape: of one sample, `[D]` or `[C, H, W]`.
        latent: the number of latent dimensions.
        likelihood: its name. Gaussian and Laplace have one learned scale, `head.log_scale`.
        arch: `"mlp"`, or `"conv"` for `[C, H, W]`.
        width: hidden units of the perceptron, or channels of the first convolution.
        scale: where the learned scale begins, best the data's standard deviation.

    Raises:
        InputError: the architecture does not fit the shape, or an argument is unknown.

    Example:
        >>> model = VAE([1, 8, 8], latent=4)
        >>> mu, logvar = model.encode(torch.rand(3, 1, 8, 8))
        >>> mu.shape, model.decode(mu).shape
        (torch.Size([3, 4]), torch.Size([3, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        latent: int,
        likelihood: str = "bernoulli",
        arch: Architecture = "mlp",
        width: int | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if arch not in _BUILDERS:
            raise InputError(f"arch must be one of {', '.join(_BUILDERS)}, got {arch!r}")
        self.shape, self.latent = tuple(shape), latent
        self.head = Head(likelihood, scale)
        self.encoder, self.decoder = _BUILDERS[arch](self.shape, latent, self.head.tensors, width)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logvar, `[B, latent]` each, of x `[B, *shape]` (uint8: pixels up to 255)."""
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype()) / (255 if x.dtype == torch.uint8 else 1)
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor) -> Params:
        """The likelihood's parameters `[..., *shape]` for z `[..., latent]`."""
        lead = z.shape[:-1]
        out: Tensor = self.decoder(z.reshape(-1, self.latent))
        params = tuple(part.reshape(*lead, *self.shape) for part in out.chunk(self.head.tensors, 1))
        return params if len(params) > 1 else params[0]

    def likelihood(self) -> Likelihood:
        """p(x|z), with its learned scale as it is now."""
        likelihood: Likelihood = self.head()
        return likelihood

    def mean(self, z: Tensor) -> Tensor:
        """E[x|z], `[..., *shape]`."""
        return self.likelihood().mean(self.decode(z))


class Head(nn.Module):
    """What the decoder's output means: how many tensors it is, and the likelihood."""

    def __init__(self, name: str, scale: float = 1.0) -> None:
        super().__init__()
        if name not in registered():
            raise InputError(f"likelihood must be one of {', '.join(registered())}, got {name!r}")
        self.name = name
        self.tensors = 1
        if name in _LEARNED_SCALE:
            self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        else:
            self.tensors = len(registered()[name].param_names)

    def forward(self) -> Likelihood:
        if self.name in _LEARNED_SCALE:
            return _LEARNED_SCALE[self.name](self.log_scale.exp())
        return resolve(self.name)


def _mlp(
    shape: tuple[int, ...], latent: int, tensors: int, width: int | None
) -> tuple[nn.Module, nn.Module]:
    size, hidden = math.prod(shape), width or 256
    encoder = nn.Sequential(
        nn.Flatten(),
        nn.Linear(size, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 2 * latent),
    )
    decoder = nn.Sequential(
        nn.Linear(latent, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, tensors * size),
    )
    return encoder, decoder


def _conv(
    shape: tuple[int, ...], latent: int, tensors: int, width: int | None
) -> tuple[nn.Module, nn.Module]:
    """Halves height and width until the smaller is 4 or less; any size fits."""
    if len(shape) != 3:
        raise InputError(f"arch conv takes images [C, H, W], got samples of shape {list(shape)}")
    channels, *size = shape
    sizes, first = [tuple(size)], width or 32
    while min(sizes[-1]) > 4 and len(sizes) < 6:
        sizes.append(tuple(math.ceil(s / 2) for s in sizes[-1]))
    widths = [min(first * 2**level, 8 * first) for level in range(len(sizes))]
    down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
    up: list[nn.Module] = []
    for level in range(1, len(sizes)):
        down += [nn.Conv2d(widths[level - 1], widths[level], 3, stride=2, padding=1), nn.SiLU()]
        # Nearest upsampling and a convolution: no checkerboard, and odd sizes come out right.
        up[:0] = [
            nn.Upsample(sizes[level - 1]),
            nn.Conv2d(widths[level], widths[level - 1], 3, padding=1),
            nn.SiLU(),
        ]
    deepest = (widths[-1], *sizes[-1])
    flat = math.prod(deepest)
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, 2 * latent))
    decoder = nn.Sequential(
        nn.Linear(latent, flat),
        nn.SiLU(),
        nn.Unflatten(1, deepest),
        *up,
        nn.Conv2d(widths[0], tensors * channels, 3, padding=1),
    )
    return encoder, decoder


_BUILDERS = {"mlp": _mlp, "conv": _conv}
