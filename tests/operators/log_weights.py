"""`log_weights`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_likelihoods
import fuzz_posteriors
import fuzz_truth
import torch
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors, tensors_of
from torch import Tensor
from traced_call import K, P, X, Z, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    lead, shape = fuzz_likelihoods.elementwise(case, draw)
    latent = draw.sizes(case, "L", least=1, most=2)
    first = ("K", "B") if lead == 2 else ("B",)
    kind = draw.posterior(case)
    case.operands["mu"] = draw.operand(case, ("B", *latent))
    case.operands["scale"] = draw.operand(case, ("B", *latent), kind)
    case.operands["z"] = draw.operand(case, (*first, *latent))
    if draw.chance(0.2):
        case.operands["log_prior"] = draw.operand(case, first)
    else:
        fuzz_posteriors.prior(case, draw, ("B", *latent))
    if draw.chance(0.3):
        case.settings["stop_posterior"] = True
    draw.mask_and_weight(case, shape, p=0.12)
    fuzz_likelihoods.hide(case, draw)
    draw.differentiate(case, 1)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given = tensors_of(t, "prior_mu", "prior_scale", "log_prior", "mask", "weight")
    x, model = t["x"], fuzz_likelihoods.build(case, t)
    args = (fuzz_likelihoods.params(case, t), x, t["z"], t["mu"], t["scale"])
    return (vf.log_weights(*args, likelihood=model, **given, **fuzz_likelihoods.plain(case)),)


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    assert case.model is not None
    mu, logvar = w["mu"], fuzz_truth.log_variance(w["scale"], case.settings)
    if case.settings.get("stop_posterior"):
        mu, logvar = mu.detach(), logvar.detach()
    log_q = fuzz_posteriors.log_density(case, w["z"], mu, logvar)
    log_p = w["log_prior"] if "log_prior" in w else fuzz_posteriors.log_prior(case, w, w["z"])
    elements, lead = fuzz_likelihoods.elements_of(
        case, w, [w[f"p{i}"] for i in range(case.model[2])]
    )
    elements = fuzz_truth.weighted(elements, w.get("mask"), w.get("weight"), lead)
    return (log_p - log_q - fuzz_truth.by_sample(elements, lead),)


TRACED = {
    "": traced(
        lambda p, z, m, s, x: vf.log_weights(p, x, z, m, s, likelihood="gaussian"),
        (K, "B", X),
        Z,
        P,
        P,
        ("B", X),
        leaves=4,
    ),
}
SETTINGS = {
    "clamp": (
        lambda v, p, z, m, s: vf.log_weights(
            p, torch.zeros_like(p[0]), z, m, s, likelihood="gaussian", clamp=(-v, v)),
        ((K, "B", X), Z, P, P)),
}  # fmt: skip
