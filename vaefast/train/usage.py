"""What a model's latent dimensions carry of data: the KL of each to its own prior, or of all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .models import Model

# Samples of each x where the KL is a Monte Carlo mean.
_SAMPLES = 16


class Usage(NamedTuple):
    """In nats, means over the data.

    `kl`: of each dimension, `[latent]`, to its own prior, as `Model.kl_terms` has it; None where
    the prior does not have its dimensions apart. `total`: KL(q(z|x) || p(z)), for which
    `estimated` is True where it is a mean over samples of z.
    """

    kl: Tensor | None
    total: float
    estimated: bool


@torch.no_grad()
def usage(model: Model, batches: Iterable[Tensor], seed: int = 0) -> Usage:
    """Of batches of data `[B, *shape]`; the same seed gives the same numbers."""
    terms: list[Tensor] = []
    total, count = 0.0, 0
    for index, x in enumerate(batches):
        noise = seed * 2**32 + index
        for draw in range(1 if model.closed_kl else _SAMPLES):
            found = model.kl_terms(x, seed=noise + (draw << 16))
            if found is not None:
                terms.append(found.double().sum(0).cpu())
        kl = model.draw(x, num_samples=_SAMPLES, seed=noise).kl
        # Known given x, or one for each sample.
        total += float(kl.double().sum()) / (kl.numel() / len(x))
        count += len(x)
    each = count * (1 if model.closed_kl else _SAMPLES)
    apart = torch.stack(terms).sum(0) / each if terms else None
    return Usage(apart, total / count, not model.closed_kl)


def to_arrays(found: Usage) -> dict[str, np.ndarray]:
    """As held_out.npz keeps it."""
    arrays = {"kl_total": np.array(found.total), "kl_estimated": np.array(found.estimated)}
    if found.kl is not None:
        arrays["kl"] = found.kl.numpy()
    return arrays


def from_arrays(arrays: Any) -> Usage | None:
    """What `to_arrays` made; None of an older version's file, which has nothing of it."""
    if "kl_total" not in arrays:
        return None
    kl = torch.from_numpy(arrays["kl"]) if "kl" in arrays else None
    return Usage(kl, float(arrays["kl_total"]), bool(arrays["kl_estimated"]))
