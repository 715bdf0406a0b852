"""`monte_carlo_kl`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_posteriors
import fuzz_truth
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors, tensors_of
from torch import Tensor
from traced_call import P, Z, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    case.dims["B"] = draw.size()
    lead = draw.chance(0.5)
    if lead:
        case.dims["K"] = draw.pick(1, 2, 3)
    latent = draw.sizes(case, "L", least=0)
    first = ("K", "B") if lead else ("B",)
    kind = draw.posterior(case)
    for name, shape, values in (
        ("mu", ("B", *latent), "normal"),
        ("scale", ("B", *latent), kind),
        ("z", (*first, *latent), "normal"),
    ):
        case.operands[name] = draw.operand(case, shape, values)
    if draw.chance(0.3):
        case.operands["log_det"] = draw.operand(case, draw.pick(first, ("B",)))
    if draw.chance(0.3):
        case.operands["z_flow"] = draw.operand(case, (*first, *latent))
    how = draw.pick("", "", "pair", "tensor")
    if how == "pair":
        for name, values in (("prior_mu", "normal"), ("prior_scale", kind)):
            shape = draw.pick(("B", *latent), latent)
            case.operands[name] = draw.operand(case, shape, values)
    elif how == "tensor":
        case.operands["prior"] = draw.operand(case, first)
    if draw.chance(0.2):
        case.settings["stop_posterior"] = True
    if draw.chance(0.4):
        case.settings["reduction"] = draw.pick("batchmean", "sum")
    draw.differentiate(case, 1)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given: dict[str, Any] = {**tensors_of(t, "log_det", "z_flow", "prior")}
    if "prior_mu" in t:
        given["prior"] = (t["prior_mu"], t["prior_scale"])
    return (vf.monte_carlo_kl(t["z"], t["mu"], t["scale"], **given, **case.settings),)


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    mu, logvar = w["mu"], fuzz_truth.log_variance(w["scale"], s)
    if s.get("stop_posterior"):
        mu, logvar = mu.detach(), logvar.detach()
    kl = fuzz_posteriors.log_density(case, w["z"], mu, logvar)
    at = w.get("z_flow", w["z"])
    kl = kl - (w["prior"] if "prior" in w else fuzz_posteriors.log_prior(case, w, at))
    if "log_det" in w:
        kl = kl - fuzz_truth.aligned(w["log_det"], kl.dim() - 1)
    lead = 2 if "K" in case.dims else 1
    return (fuzz_truth.reduced(kl, s.get("reduction", "sample"), None, lead),)


TRACED = {
    "": traced(lambda z, m, s: vf.monte_carlo_kl(z, m, s), Z, P, P),
}
SETTINGS = {
    "clamp": (
        lambda v, z, m, s: vf.monte_carlo_kl(z, m, s, clamp=(-v, v)), (Z, P, P)),
}  # fmt: skip
