"""The registered operator that samples a posterior and takes its KL, also called without a plan."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._args import compute_dtype
from ..backends._options import Posterior, z_shape
from ._register import Operator

_TENSORS = (
    "Tensor mu, Tensor scale, Tensor? prior_mu, Tensor? prior_scale, Tensor? mask, "
    "Tensor? weight, Tensor? state, Tensor? noise"
)


# What is beside mu and scale: prior_mu, prior_scale, mask, weight, noise; () for none of them.
Others = tuple[Tensor | None, ...]


def in_schema(
    mu: Tensor, scale: Tensor, others: Others, state: Tensor | None
) -> tuple[Tensor | None, ...]:
    """In the order of the registered operator."""
    prior_mu, prior_scale, mask, weight, noise = others[:5] or (None,) * 5
    return mu, scale, prior_mu, prior_scale, mask, weight, state, noise


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    mu, options = args[0], args[8]
    z = mu.new_empty(z_shape(mu.shape, options.num_samples) if options.num_samples >= 0 else (0,))
    if not options.reduce:
        return z, mu.new_empty(0)
    return z, mu.new_empty(options.kl_shape(mu.shape), dtype=compute_dtype(*args[:4]))


def _backward_fake(*args: Any) -> list[Tensor]:
    parameters, need = args[2:6], args[-1]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t, n in zip(parameters, need, strict=True)
        if n
    ]


def _finish(results: tuple[Tensor | None, Tensor | None], mu: Tensor) -> tuple[Tensor, Tensor]:
    """An operator of torch returns tensors: none is one of no elements."""
    z, kl = results
    return mu.new_empty(0) if z is None else z, mu.new_empty(0) if kl is None else kl


forward = Operator(
    "sample_kl", _TENSORS, Posterior, "(Tensor, Tensor)", _forward_fake, finish=_finish
)


backward = Operator(
    "sample_kl_backward",
    f"Tensor? grad_z, Tensor? grad_kl, {_TENSORS}",
    Posterior,
    "Tensor[]",
    _backward_fake,
    also="bool[] need",
    module="sample_kl",
)


class Unplanned(NamedTuple):
    """A call that has no plan: by a backend that makes none, or by torch's dispatcher."""

    options: Posterior
    backend: str

    def forward(
        self,
        mu: Tensor,
        scale: Tensor,
        others: Others,
        state: Tensor | None,
        state_kind: int,
        keep: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As a plan's."""
        tensors = in_schema(mu, scale, others, state)
        z, kl = forward.call(self.backend, others[5], *tensors, self.options)
        return z, kl, None
