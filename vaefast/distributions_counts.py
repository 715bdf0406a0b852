"""Distributions of counts with scvi-tools' constructors; log_prob is one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Gamma, constraints
from torch.distributions import Poisson as TorchPoisson
from torch.distributions.utils import broadcast_all, lazy_property, probs_to_logits

from . import _args, likelihoods
from .likelihoods import Likelihood
from .ops.nll import nll

_NB = likelihoods.NegativeBinomial()
_ZINB = likelihoods.ZeroInflatedNegativeBinomial()
_POISSON = likelihoods.Poisson(log=False)

# scvi-tools': torch's Poisson sampler is wrong for rates beyond.
_LARGEST_RATE = 1e8


class Poisson(TorchPoisson):
    """`torch.distributions.Poisson` with scvi-tools' constructor and a fused `log_prob`.

    Args:
        rate: at least 0; at 0 every count but 0 has log p = -inf.
        validate_args: check rate and counts; None for torch's default.
        scale: a normalised expression, kept for `get_normalized`.

    Example:
        >>> float(Poisson(torch.tensor(1.0)).log_prob(torch.tensor(0.0)))
        -1.0
    """

    def __init__(
        self,
        rate: Tensor | float,
        validate_args: bool | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__(rate, validate_args=validate_args)
        self.scale = scale

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        new = self._get_checked_instance(Poisson, _instance)
        new.scale = _expanded(self.scale, batch_shape)
        return super().expand(Size(batch_shape), _instance=new)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) per element, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return log_prob(_POISSON, (self.rate,), value)

    def get_normalized(self, key: str) -> Tensor | None:
        """`"mu"`: the rate; `"scale"`: the scale that was given."""
        return _normalized(key, self.rate, self.scale)


class NegativeBinomial(Distribution):
    """Counts of mean mu and variance mu + mu^2 / theta, as `scvi.distributions.NegativeBinomial`.

    Give mu and theta, or total_count with probs or logits: theta = total_count,
    mu = total_count exp(logits).

    Args:
        total_count: number of failures until the experiment stops; positive.
        probs: success probability, in [0, 1).
        logits: its logit.
        mu: mean, at least 0.
        theta: inverse dispersion, positive; may broadcast, as `[G]`, one per gene.
        scale: a normalised expression, kept for `get_normalized`; with total_count mu / sum(mu).
        validate_args: check the parameters and the counts (an error, where scvi-tools warns).
        eps: added to mu in `log_prob`, as scvi-tools does, so that a mean that has underflowed to
            0 beside a count gives a large loss with a finite gradient; 0 for the bare formula,
            which is -inf there.

    Raises:
        ValueError: neither or both parameterizations are given, or half of one.

    Example:
        >>> p = NegativeBinomial(mu=torch.tensor([2.0, 3.0]), theta=torch.tensor(1.0))
        >>> p.mean, p.variance, p.log_prob(torch.tensor([0.0, 0.0]))
        (tensor([2., 3.]), tensor([ 6., 12.]), tensor([-1.0986, -1.3863]))

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics".
    """

    arg_constraints = {  # noqa: RUF012
        "mu": constraints.nonnegative,
        "theta": constraints.positive,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self,
        total_count: Tensor | float | None = None,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        mu: Tensor | float | None = None,
        theta: Tensor | float | None = None,
        scale: Tensor | None = None,
        validate_args: bool | None = False,
        *,
        eps: float = 1e-8,
    ) -> None:
        mu, theta = _mean_and_dispersion(total_count, probs, logits, mu, theta)
        if total_count is not None and scale is None:
            scale = mu / mu.sum(-1, keepdim=True)
        self._keep(mu, theta, scale, eps)
        super().__init__(self.mu.shape, validate_args=validate_args)

    def _keep(self, mu: Tensor, theta: Tensor, scale: Tensor | None, eps: float) -> None:
        self.mu, self.theta = mu, theta
        self.scale = scale
        self.eps = _args.number("eps", eps)
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps must be in [0, 1), got {eps}")

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        new = self._get_checked_instance(NegativeBinomial, _instance)
        shape = Size(batch_shape)
        scale = _expanded(self.scale, shape)
        NegativeBinomial._keep(
            new, self.mu.expand(shape), self.theta.expand(shape), scale, self.eps
        )
        Distribution.__init__(new, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def variance(self) -> Tensor:
        return self.mu + self.mu**2 / self.theta

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Counts, `[*sample_shape, *batch_shape]`, by torch's gamma and Poisson samplers."""
        with torch.no_grad():
            shape = self._extended_shape(Size(sample_shape))
            theta = self.theta.expand(shape)
            rate = Gamma(theta, torch.ones_like(theta), validate_args=False).sample()
            return torch.poisson((rate * (self.mu / self.theta)).clamp(max=_LARGEST_RATE))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) per element, in nats; float32, or float64 if a parameter is."""
        if self._validate_args:
            self._validate_sample(value)
        return log_prob(_NB, (above_zero(self.mu, self.eps), self.theta), value)

    def get_normalized(self, key: str) -> Tensor | None:
        """`"mu"`: the mean before dropout; `"scale"`: the scale that was given."""
        return _normalized(key, self.mu, self.scale)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """A `NegativeBinomial` whose count is lost, and 0, with probability sigmoid(zi_logits).

    As `scvi.distributions.ZeroInflatedNegativeBinomial`. Its mean is (1 - pi) mu; `mu` is the mean
    before dropout.

    Args:
        zi_logits: logits of the zero inflation; the others as of `NegativeBinomial`.

    Raises:
        ValueError: as `NegativeBinomial`, or zi_logits is missing.

    Example:
        >>> p = ZeroInflatedNegativeBinomial(mu=3.0, theta=1.0, zi_logits=0.0)
        >>> float(p.mean), float(p.variance)
        (1.5, 8.25)

    Source: Lopez et al. 2018.
    """

    arg_constraints = {  # noqa: RUF012
        "mu": constraints.nonnegative,
        "theta": constraints.positive,
        "zi_logits": constraints.real,
    }

    def __init__(
        self,
        total_count: Tensor | float | None = None,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        mu: Tensor | float | None = None,
        theta: Tensor | float | None = None,
        zi_logits: Tensor | float | None = None,
        scale: Tensor | None = None,
        validate_args: bool | None = False,
        *,
        eps: float = 1e-8,
    ) -> None:
        if zi_logits is None:
            raise ValueError("zi_logits must be given: the logits of the zero inflation")
        mu, theta = _mean_and_dispersion(total_count, probs, logits, mu, theta)
        self.zi_logits, mu, theta = broadcast_all(zi_logits, mu, theta)
        super().__init__(mu=mu, theta=theta, scale=scale, validate_args=validate_args, eps=eps)
        if total_count is not None and scale is None:
            self.scale = mu / mu.sum(-1, keepdim=True)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        new = self._get_checked_instance(ZeroInflatedNegativeBinomial, _instance)
        new.zi_logits = self.zi_logits.expand(Size(batch_shape))
        return super().expand(batch_shape, _instance=new)

    @lazy_property
    def zi_probs(self) -> Tensor:
        """The probability of a lost count."""
        return torch.sigmoid(self.zi_logits)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.zi_logits) * self.mu

    @property
    def variance(self) -> Tensor:
        kept = torch.sigmoid(-self.zi_logits)
        return kept * (self.mu + self.mu**2 * (1 / self.theta + self.zi_probs))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Counts, `[*sample_shape, *batch_shape]`."""
        with torch.no_grad():
            counts = super().sample(sample_shape)
            return torch.where(torch.rand_like(counts) < self.zi_probs, 0.0, counts)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) per element, in nats; float32, or float64 if a parameter is."""
        if self._validate_args:
            self._validate_sample(value)
        mu = above_zero(self.mu, self.eps)
        return log_prob(_ZINB, (mu, self.theta, self.zi_logits), value)


def log_prob(likelihood: Likelihood, params: tuple[Tensor, ...], value: Tensor) -> Tensor:
    """log p(value) per element of the shape that value and params broadcast to."""
    shape = torch.broadcast_shapes(value.shape, *(p.shape for p in params))
    full = shape or Size((1,))
    # Where there are samples of the parameters the target is not repeated for each.
    rows = full[1:] if value.dim() == len(full) - 1 and value.dim() > 0 else full
    if value.dtype not in likelihood.target_dtypes:
        value = value.to(torch.int64)
    tensors = tuple(p if p.shape == full else _args.expanded(p, full) for p in params)
    target = value if value.shape == rows else value.expand(rows)
    return -nll(tensors, target, likelihood, reduction="none").view(shape)


def above_zero(mu: Tensor, eps: float) -> Tensor:
    """mu + eps, wide enough to hold an eps beside 0."""
    return mu.to(_args.compute_dtype(mu)) + eps if eps else mu


def _mean_and_dispersion(
    total_count: Tensor | float | None,
    probs: Tensor | float | None,
    logits: Tensor | float | None,
    mu: Tensor | float | None,
    theta: Tensor | float | None,
) -> tuple[Tensor, Tensor]:
    """(mu, theta) of one common shape, from either parameterization."""
    if (mu is None) == (total_count is None):
        raise ValueError(
            "give either mu and theta or total_count with probs or logits, got "
            + ("both" if mu is not None else "neither")
        )
    if mu is not None:
        if theta is None or probs is not None or logits is not None:
            raise ValueError("mu takes theta beside it, and neither probs nor logits")
        mu, theta = broadcast_all(mu, theta)
        return mu, theta
    if (probs is None) == (logits is None) or theta is not None:
        raise ValueError("total_count takes one of probs and logits beside it, and no theta")
    given = logits if probs is None else probs
    assert given is not None and total_count is not None
    counts, given = broadcast_all(total_count, given)
    if probs is not None:
        given = probs_to_logits(given, is_binary=True)
    counts = counts.to(given.dtype)
    return counts * torch.exp(given), counts


def _expanded(scale: Tensor | None, batch_shape: Sequence[int]) -> Tensor | None:
    return scale if scale is None else scale.expand(Size(batch_shape))


def _normalized(key: str, mu: Tensor, scale: Tensor | None) -> Tensor | None:
    _args.one_of("key", key, ("mu", "scale"))
    return mu if key == "mu" else scale
