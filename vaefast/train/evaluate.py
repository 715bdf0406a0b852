"""A trained model on data: the ELBO, log p(x), bits, and what its dimensions carry."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..ops.annealed_log_weights import annealed_log_weights
from ..ops.log_marginal import log_marginal
from .data import Samples
from .models import Model
from .objectives import held_out_elbo
from .usage import usage

_BATCH = 256
_LOG_2PI = math.log(2 * math.pi)
# The mutual information takes all pairs.
_PAIRS = 5_000


@torch.no_grad()
def evaluate(
    model: Model,
    data: Samples,
    *,
    samples: int = 500,
    anneal: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Figures of a model on data, in nats per sample.

    Args:
        samples: K, the importance samples of each x; with `anneal` the chains.
        anneal: log p(x) by annealed importance sampling of so many steps.
        seed: of all noise.
        progress: show a bar.

    Returns:
        `elbo`, `nll`, `kl`; `log_px`, the mean of log p(x)'s estimates (low by a little: a bound on
        average), its Monte Carlo `log_px_standard_error`, and the `effective_samples` of the median
        x: near 1, trust neither; `bits_per_dimension` of log_px (for densities: of the data in the
        units they are in); `active_units`; `kl_per_dimension` where the prior has its dimensions
        apart (`Model.kl_terms`); and, for a diagonal posterior, `mutual_information`.
    """
    bound = held_out_elbo(model, data.batches(_BATCH), seed=seed)
    found: dict[str, Any] = {
        "samples": len(data),
        "elbo": -bound.loss.item(),
        "nll": bound.nll.item(),
        "kl": bound.kl.item(),
        "method": f"annealed, {anneal} steps, {samples} chains"
        if anneal
        else f"importance sampling, {samples} samples",
    }
    devices = [next(model.parameters()).device] if torch.cuda.is_available() else []
    with torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
        torch.manual_seed(seed)
        fn = _annealed(model, anneal) if anneal else model.log_weights
        rows = max(1, min(_BATCH, 1_000_000 // max(1, math.prod(model.shape))))
        parts = [
            log_marginal(
                fn, x, samples, min(samples, 50), return_error=True, progress=progress and not i
            )
            for i, x in enumerate(data.batches(rows))
        ]
    estimate, error, effective = (torch.cat(part) for part in zip(*parts, strict=True))
    found["log_px"] = estimate.mean().item()
    found["log_px_standard_error"] = error.square().sum().sqrt().item() / len(data)
    found["effective_samples"] = effective.median().item()
    found["bits_per_dimension"] = metrics.bits_per_dimension(
        -found["log_px"], math.prod(model.shape)
    )
    codes = [model.encode(x) for x in data.batches(_BATCH)]
    mu, logvar = (torch.cat(part) for part in zip(*codes, strict=True))
    found["latent"] = model.latent
    if len(data) > 1:
        found["active_units"] = int(metrics.active_units(mu).sum())
    apart = usage(model, data.batches(_BATCH), seed).kl
    if apart is not None:
        found["kl_per_dimension"] = apart.tolist()
    if model.diagonal:
        some = slice(0, _PAIRS)
        found["mutual_information"] = metrics.mutual_information(
            mu[some], logvar[some], seed=seed
        ).item()
    return found


def _annealed(model: Model, steps: int) -> Any:
    def fn(x: Tensor, count: int) -> Tensor:
        mu, logvar = model.encode(x)

        def weigh(z: Tensor) -> Tensor:
            # Whatever the posterior is, the chains start from its means and variances.
            unit = (z - mu) * torch.exp(-0.5 * logvar)
            start = -0.5 * (unit.square() + logvar + _LOG_2PI).sum(-1)
            return model.log_prior(z) - model.nll(z, x) - start

        return annealed_log_weights(weigh, mu, logvar, count, steps=steps)

    return fn
