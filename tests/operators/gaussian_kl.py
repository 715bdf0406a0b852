"""`gaussian_kl`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_likelihoods
import fuzz_posteriors
import fuzz_truth
from fuzz_cases import Case, Draw
from fuzz_operator import REDUCTIONS, Tensors, tensors_of
from torch import Tensor
from traced_call import D, P, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    shape = fuzz_posteriors.posterior(case, draw)
    fuzz_posteriors.prior(case, draw, shape)
    draw.mask_and_weight(case, shape)
    reduction = draw.pick(*REDUCTIONS, "batchmean", "dim")
    if draw.chance(0.15):
        case.settings["free_bits"] = draw.pick(0.1, 0.5, 2.0)
        per = draw.pick("dim", "sample", "total")
        case.settings["free_bits_per"] = per
        allowed = {"dim": ("batchmean", "sum", "mean", "dim"),
                   "sample": ("batchmean", "sum", "mean", "sample"),
                   "total": ("batchmean", "sum", "mean")}[per]  # fmt: skip
        if reduction not in allowed:
            reduction = draw.pick(*allowed)
    if reduction != "batchmean":
        case.settings["reduction"] = reduction
    fuzz_likelihoods.hide(case, draw)
    draw.differentiate(case, 1)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given = tensors_of(t, "prior_mu", "prior_scale", "mask", "weight")
    return (vf.gaussian_kl(t["mu"], t["scale"], **given, **case.settings),)


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    elements = fuzz_posteriors.kl_elements(case, w, fuzz_truth.log_variance(w["scale"], s))
    reduction, mask = s.get("reduction", "batchmean"), w.get("mask")
    if s.get("free_bits", 0) > 0:
        per = s.get("free_bits_per", "dim")
        return (fuzz_truth.free_bits(elements, s["free_bits"], per, reduction, mask),)
    return (fuzz_truth.reduced(elements, reduction, mask),)


SHARE = 2
TRACED = {
    "": traced(lambda m, s: vf.gaussian_kl(m, s), P, P),
    "prior": traced(
        lambda *t: vf.gaussian_kl(*t, free_bits=0.1, param="softplus", reduction="mean"),
        P,
        P,
        (D,),
        P,
    ),
    "balanced": traced(lambda *t: vf.gaussian_kl(*t, balance=0.8), P, P, (D,), P),
}
SETTINGS = {
    "clamp": (lambda v, m, s: vf.gaussian_kl(m, s, clamp=(-v, v)), (P, P)),
    "min_std": (
        lambda v, m, s: vf.gaussian_kl(m, s, param="softplus", min_std=v), (P, P)),
    "free_bits": (lambda v, m, s: vf.gaussian_kl(m, s, free_bits=v), (P, P)),
    "balance": (
        lambda v, m, s, p: vf.gaussian_kl(m, s, p, balance=v), (P, P, P)),
}  # fmt: skip
