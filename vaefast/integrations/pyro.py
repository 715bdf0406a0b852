"""Pyro: a Normal for guides whose sample, density and KL are fused.

Importing this module imports Pyro (pyro-ppl 1.9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.distributions import Independent, Normal
from torch.distributions.kl import kl_divergence, register_kl

from .. import distributions
from ._patching import check_version

check_version("pyro-ppl", ("1.9",), package="pyro")

import pyro.distributions  # noqa: E402

__all__ = ["FusedNormal"]


class FusedNormal(distributions.FusedNormal, pyro.distributions.Normal):
    """`pyro.distributions.Normal` with fused `rsample`, `log_prob` and KL to a Normal.

    A drop-in for guides and models, with `to_event`, `mask`, `expand`, `expand_by` and the call
    syntax, under every ELBO. After `to_event` the density and the KL are summed in their kernel.
    Its noise is vaefast's: `pyro.set_rng_seed` governs it, and gives other numbers than
    `pyro.distributions.Normal`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def guide(x):
        ...     mu, sigma = encoder(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("latent", FusedNormal(mu, sigma).to_event(1))
    """

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        """The last `reinterpreted_batch_ndims` batch dimensions as event dimensions, None for
        all."""
        dims = len(self.batch_shape)
        if reinterpreted_batch_ndims is not None:
            dims = reinterpreted_batch_ndims
        if dims < 0:
            raise ValueError(
                "reinterpreted_batch_ndims must be at least 0 for a distribution without event "
                f"dimensions, got {dims}"
            )
        return FusedIndependent(self, dims) if dims else self


class FusedIndependent(pyro.distributions.Independent):
    """A `FusedNormal` with event dimensions: what `to_event` gives."""

    base_dist: FusedNormal
    reinterpreted_batch_ndims: int

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        """As `FusedNormal.to_event`, beyond the event dimensions there are; negative to take some
        of them back."""
        if reinterpreted_batch_ndims is None:
            return self.base_dist.to_event(None)
        return self.base_dist.to_event(reinterpreted_batch_ndims + self.reinterpreted_batch_ndims)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), summed over the event."""
        base = self.base_dist
        # As Pyro's: whole events are asked nothing that their elements are not, and at more cost.
        if base._validate_args:
            base._validate_sample(value)
        return distributions.normal_log_prob(base, value, self.reinterpreted_batch_ndims)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base_dist.rsample(sample_shape)


def _kl(p: FusedIndependent, q: Independent[Any]) -> Tensor:
    """KL(p || q) per batch element."""
    dims = p.reinterpreted_batch_ndims
    if q.reinterpreted_batch_ndims == dims and isinstance(q.base_dist, Normal):
        return distributions.normal_kl(p.base_dist, q.base_dist, dims)
    return kl_divergence(pyro.distributions.Independent(p.base_dist, dims), q)


register_kl(FusedIndependent, Independent)(_kl)
