"""diffusers' posteriors, on their own classes: every model and pipeline that has them is served.

`DiagonalGaussianDistribution` (images and video), `OobleckDiagonalGaussianDistribution` (Stable
Audio, Cosmos) and `MiniMaxH3AudioDiagonalGaussianDistribution`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from .._diagonal_gaussian import in_format_of
from ..likelihoods import Gaussian
from ..ops.gaussian_kl import gaussian_kl
from ..ops.nll import nll
from ..ops.rsample import rsample
from ._patching import Library, Patch, Replacement

__all__ = ["patch", "patched", "unpatch"]

Rng = Literal["torch", "philox"]


def patch(*, rng: Rng = "torch", compat: bool = False) -> Patch:
    """Replaces what diffusers' posteriors compute, on their classes.

    - `kl` and `nll` are one kernel each, float32 or wider whatever the parameters are, right where
      the posterior nearly is the prior, and of inputs of any number of dimensions.
    - `sample`, with `rng="philox"`: as `rsample` draws, reproducible by the same `generator`, whose
      samples are others than diffusers'. With `rng="torch"` diffusers' own `sample` stays: the
      same `generator` gives the same bits.

    What differs from diffusers, each said once in a warning when it is met:

    - It sums `kl` and `nll` over dimensions 1 to 3 whatever the rank: `[B, W]` for a video, an
      error for audio. Here it is all but the batch.
    - Oobleck's `kl()` is twice the KL, and its `kl(other)` has the log-variances' difference the
      wrong way round, which is not least where the two are equal. Here it is the KL, summed over
      dimension 1 and averaged over the rest as there.

    Args:
        rng: `"torch"` or `"philox"`.
        compat: keep diffusers' value in both.

    Returns:
        What was replaced.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
        VersionError: it is of a version that is not known.
        ValueError: rng is none of the two.
    """
    if rng not in ("torch", "philox"):
        raise ValueError(f"rng must be one of 'torch', 'philox', got {rng!r}")
    return _library.patch(rng=rng, compat=bool(compat))


def unpatch() -> Patch | None:
    """Puts diffusers' own methods back; objects that are there go by them again."""
    return _library.unpatch()


def patched(*, rng: Rng = "torch", compat: bool = False) -> AbstractContextManager[Patch]:
    """`patch()` inside the block, what was before after it; also a decorator."""
    if rng not in ("torch", "philox"):
        raise ValueError(f"rng must be one of 'torch', 'philox', got {rng!r}")
    return _library.patched(rng=rng, compat=bool(compat))


# What has been said since `patch()`. Not an object that the methods hold: the compiler could not
# trace them then.
_said: set[str] = set()


def _say_once(text: str, stacklevel: int = 3) -> None:
    # A compiled graph has no place for it.
    if not torch.compiler.is_compiling() and text not in _said:
        _said.add(text)
        warnings.warn(text, stacklevel=stacklevel)


def _replacements(rng: str, compat: bool) -> Iterator[Replacement]:
    from diffusers.models.autoencoders import (
        autoencoder_kl_minimax_h3_audio,
        autoencoder_oobleck,
        vae,
    )

    gaussian = vae.DiagonalGaussianDistribution
    oobleck = autoencoder_oobleck.OobleckDiagonalGaussianDistribution
    minimax = autoencoder_kl_minimax_h3_audio.MiniMaxH3AudioDiagonalGaussianDistribution
    _said.clear()
    yield Replacement(gaussian, "kl", _kl(compat))
    yield Replacement(gaussian, "nll", _nll(compat))
    yield Replacement(oobleck, "kl", _oobleck_kl(compat))
    if rng == "philox":
        for owner in (gaussian, oobleck, minimax):
            yield Replacement(owner, "sample", _sample)


_library = Library("diffusers", versions=("0.42",), replacements=_replacements)


def _sample(self: Any, generator: Any = None) -> Tensor:
    """mean + std * eps; of the point mass mean, at the same cost to the generator."""
    if isinstance(generator, (list, tuple)) and len(generator) == 1:
        (generator,) = generator
    z = rsample(self.mean, self.std, param="std", generator=generator)
    return in_format_of(z, getattr(self, "parameters", self.mean))


# What diffusers sums over, whatever the rank.
_IMAGE = (1, 2, 3)


def _dims(what: str, mean: Tensor, compat: bool) -> tuple[int, ...]:
    """What a sum that names no dimensions is over."""
    if compat:
        return _IMAGE
    if mean.dim() > 4:
        _say_once(
            f"{what} of a posterior of shape {list(mean.shape)} is summed over all but the batch "
            "(vaefast); diffusers sums over dimensions 1 to 3: patch(compat=True) does so",
            stacklevel=4,
        )
    return tuple(range(1, mean.dim()))


def _kl(compat: bool) -> Callable[..., Tensor]:
    def kl(self: Any, other: Any = None) -> Tensor:
        """KL(self || other), or against N(0, I), in nats: `[B]`."""
        mean: Tensor = self.mean
        if self.deterministic:
            return mean.new_zeros(1, dtype=_wide(mean))
        dims = _dims("kl()", mean, compat)
        logvar: Tensor = self.logvar
        prior: tuple[Tensor | None, Tensor | None] = (None, None)
        if other is not None:
            shape = torch.broadcast_shapes(mean.shape, other.mean.shape)
            mean, logvar = mean.expand(shape), logvar.expand(shape)
            if other.deterministic:
                return torch.full_like(mean, torch.inf, dtype=_wide(mean)).sum(dims)
            prior = (other.mean, other.logvar)
        if len(dims) == mean.dim() - 1:
            return gaussian_kl(mean, logvar, *prior, reduction="sample")
        return gaussian_kl(mean, logvar, *prior, reduction="none").sum(dims)

    return kl


def _nll(compat: bool) -> Callable[..., Tensor]:
    def log_loss(self: Any, sample: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """-log q(sample), summed over dims, by default all but the batch, in nats."""
        if self.deterministic:
            return torch.zeros(1, dtype=_wide(self.mean), device=self.mean.device)
        sample, mean, logvar = torch.broadcast_tensors(sample, self.mean, self.logvar)
        over = _dims("nll()", mean, compat) if dims is None else dims
        if sorted(d % mean.dim() for d in over) == list(range(1, mean.dim())):
            return nll((mean, logvar), sample, Gaussian(), reduction="sample")
        return nll((mean, logvar), sample, Gaussian(), reduction="none").sum(tuple(over))

    log_loss.__name__ = "nll"
    return log_loss


def _oobleck_kl(compat: bool) -> Callable[..., Tensor]:
    def kl(self: Any, other: Any = None) -> Tensor:
        """KL(self || other), or against N(0, I), per position, in nats: a scalar."""
        mean: Tensor = self.mean
        if self.deterministic:
            return torch.zeros(1, dtype=_wide(mean), device=mean.device)
        prior = (None, None) if other is None else (other.mean, other.std)
        whole = gaussian_kl(mean, self.std, *prior, param="std", reduction="mean") * mean.shape[1]
        if compat:
            if other is not None:
                # The logarithm's sign is diffusers'.
                whole = whole + (self.logvar - other.logvar).sum(1).mean()
            return 2 * whole
        _say_once(
            "Oobleck's kl() is the KL (vaefast); diffusers' is twice that, and its kl(other) is no "
            "KL. A loss that weighs diffusers' takes twice the weight, or patch(compat=True)"
        )
        return whole

    return kl


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
