"""What every model is, and the registry of them."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ... import random
from ...likelihoods import Likelihood, Params
from ...ops.nll import nll
from .. import InputError
from ..registry import Registry
from .backbones import Sizes, build_backbone
from .head import Head, Input

Estimator = Literal["closed", "monte_carlo"]
_LOG_2PI = math.log(2 * math.pi)


def _parameters(cls: type[Model]) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Model) and "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            found |= {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    return found


# A model's settings are the keyword arguments of its `__init__` and of those of its bases.
MODELS: Registry[type[Model]] = Registry("model", _parameters, given=("shape",))
register, registered = MODELS.register, MODELS.registered


def build(name: str = "vae", **settings: Any) -> Model:
    """A model by its name; its settings as `settings_of` lists them, and `shape`.

    Raises:
        InputError: there is no such model, or a setting is unknown or does not fit.

    Example:
        >>> model = build("vamp", shape=[1, 8, 8], latent=4, pseudo_inputs=10)
        >>> model.sample(2, seed=0).shape
        torch.Size([2, 1, 8, 8])
    """
    return MODELS.build(name, settings)  # type: ignore[no-any-return]


def settings_of(name: str) -> dict[str, inspect.Parameter]:
    """The settings of a model by name, each with its default and annotation.

    Raises:
        InputError: there is no such model.
    """
    return _parameters(MODELS.find(name))


class Draw(NamedTuple):
    """Codes z, `[B, latent]` or `[K, B, latent]`, and their KL: `[B]`, or log q(z|x) - log p(z) at
    each of them."""

    z: Tensor
    kl: Tensor


class Model(nn.Module, ABC):
    """A posterior q(z|x), a prior p(z) and a likelihood p(x|z); a subclass gives the first two.

    Args:
        shape: of one sample, `[D]` or `[C, H, W]`.
        latent: the number of latent dimensions.
        likelihood: its name.
        likelihood_settings: as `head.likelihood_settings` lists them.
        arch: a backbone's name: `"mlp"`, or `"conv"` or `"resnet"` for `[C, H, W]`.
        width: hidden units of the perceptron, or channels of the first convolution.
        depth: its hidden layers, or its residual blocks per resolution.
        scale: where a learned scale begins, best the data's standard deviation.
        input: what the encoder is shown, as in `Head`.

    Raises:
        InputError: the architecture does not fit the shape, or an argument is unknown.
    """

    name = ""
    # True where q(z|x) is N(mu, diag(exp(logvar))) with what `encode` gives.
    diagonal = True
    # False where the KL that `draw` gives depends on its samples.
    closed_kl = True

    def __init__(
        self,
        shape: Sequence[int],
        *,
        latent: int = 16,
        likelihood: str = "bernoulli",
        likelihood_settings: Mapping[str, Any] | None = None,
        arch: str = "mlp",
        width: int | None = None,
        depth: int | None = None,
        scale: float = 1.0,
        input: Input = "raw",
    ) -> None:
        super().__init__()
        if latent < 1:
            raise InputError(f"latent must be at least 1, got {latent}")
        self.shape, self.latent = tuple(shape), latent
        self.head = Head(likelihood, self.shape, scale, likelihood_settings, input)
        features, code = self._sizes()
        sizes = Sizes(self.head.inputs, self.head.outputs, features, code, width, depth)
        self.encoder, self.decoder = build_backbone(arch, sizes)

    def _sizes(self) -> tuple[int, int]:
        """What the encoder gives, and what the decoder takes."""
        return 2 * self.latent, self.latent

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log-variance of q(z_d|x), `[B, latent]` each, of x `[B, *shape]`."""

    @abstractmethod
    def draw(
        self,
        x: Tensor,
        *,
        num_samples: int | None = None,
        estimator: Estimator = "closed",
        seed: int | None = None,
        offset: int = 0,
    ) -> Draw:
        """Codes of x and their KL.

        Args:
            num_samples: K codes of each; None for one.
            estimator: the KL itself where it is known, or `"monte_carlo"`, as in `sample_kl`.
            seed, offset: of the noise; `offset` in rows, where x is a part of a batch.
        """

    def has_standard_prior(self) -> bool:
        """True where p(z) is N(0, I)."""
        return type(self).log_prior is Model.log_prior

    def kl_terms(self, x: Tensor, *, seed: int | None = None) -> Tensor | None:
        """The KL of each latent dimension to its own prior, `[B, latent]`; None where the prior
        does not have them apart, and as it stands here.

        Their sum is the KL, but for what of it is in the correlations of the posterior's
        dimensions.

        Args:
            seed: of the sample at which a learned prior's parameters are.
        """
        return None

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), `[...]`, of z `[..., latent]`; N(0, I) as it stands here."""
        return -0.5 * (z.square().sum(-1) + z.shape[-1] * _LOG_2PI)

    def from_units(self, units: Tensor) -> Tensor:
        """z that lies `units` `[..., latent]` of the prior's standard deviations from its centre,
        in each dimension; z itself where the prior is N(0, I), as it stands here."""
        return units

    def prior(self, count: int, *, seed: int | None = None) -> Tensor:
        """`count` codes from p(z), where `from_units` takes N(0, I) to it, as it does here."""
        like = next(self.parameters())
        state = random.make_state(like, count, seed)
        noise = random.normal(torch.Size((count, self.latent)), state, dtype=like.dtype)
        return self.from_units(noise)

    def walk(self, dimensions: Sequence[int], steps: Tensor) -> Tensor:
        """Codes `[len(dimensions), len(steps), latent]`: each dimension by itself at `steps`
        standard deviations of the prior from its centre, the others at the centre.

        What another dimension's prior depends on moves that one too: in the hierarchical model the
        lower layer's centre goes along with the upper one.
        """
        units = steps.new_zeros(len(dimensions), len(steps), self.latent)
        for row, dimension in enumerate(dimensions):
            units[row, :, dimension] = steps
        return self.from_units(units.to(next(self.parameters())))

    def decode(self, z: Tensor) -> Params:
        """The likelihood's parameters `[..., *shape]` for z `[..., latent]`."""
        lead = z.shape[:-1]
        return self.head.params(self.decoder(z.reshape(-1, z.shape[-1])), lead)

    def likelihood(self) -> Likelihood:
        """p(x|z), with its learned scale as it is now."""
        return self.head()  # type: ignore[no-any-return]

    def nll(self, z: Tensor, x: Tensor, *, seed: int | None = None, offset: int = 0) -> Tensor:
        """-log p(x|z) per sample, `[B]` or `[K, B]`, in nats."""
        params = self.decode(z)
        return nll(
            params,
            self.head.target(x),
            self.likelihood(),
            reduction="sample",
            seed=seed,
            offset=offset * math.prod(self.shape),
        )

    def mean(self, z: Tensor) -> Tensor:
        """E[x|z], `[..., *shape]`."""
        flat = z.reshape(-1, z.shape[-1])
        return self.likelihood().mean(self.decode(flat)).reshape(*z.shape[:-1], *self.shape)

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|z] at the posterior's mean."""
        return self.mean(self.encode(x)[0])

    @torch.no_grad()
    def sample(self, count: int, *, seed: int | None = None, mean: bool = True) -> Tensor:
        """`count` new data, z from the prior: E[x|z], or with `mean=False` a draw of p(x|z)."""
        z = self.prior(count, seed=seed)
        if mean:
            return self.mean(z)
        params, likelihood = self.decode(z), self.likelihood()
        drawn = likelihood.sample(params, seed=seed)
        return drawn.reshape(count, *self.shape)

    def log_weights(self, x: Tensor, num_samples: int) -> Tensor:
        """log p(x, z) - log q(z|x) of fresh samples, `[num_samples, B]`: what `vf.log_marginal`
        takes."""
        z, ratio = self.draw(x, num_samples=num_samples, estimator="monte_carlo")
        return -self.nll(z, x) - ratio

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Where training starts, from data x `[N, *shape]`: the decoder's last bias gives their
        mean, and what the model keeps of the data's units is taken from them."""
        first = self.head.begin(x)
        if first is None:
            return
        layers = [m for m in self.decoder.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        bias = layers[-1].bias if layers else None
        if bias is not None:
            wide = first.flatten() if bias.numel() == first.numel() else first.flatten(1).mean(1)
            bias.copy_(wide)
