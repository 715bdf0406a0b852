"""`tc_terms`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_pairs
import fuzz_truth
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors
from torch import Tensor
from traced_call import P, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    case.dims["B"] = draw.size(64)
    latent = draw.sizes(case, "L", least=0, most=2)
    if case.dims["B"] > 20:
        case.dims.update({d: min(case.dims[d], 3) for d in latent})
    kind = draw.posterior(case)
    shape = ("B", *latent)
    case.operands["z"] = draw.operand(case, shape)
    case.operands["mu"] = draw.operand(case, shape)
    case.operands["scale"] = draw.operand(case, shape, kind)
    case.settings["dataset_size"] = case.dims["B"] + draw.pick(1, 2, 100, 10**6)
    if case.dims["B"] < 2 or draw.chance(0.4):
        case.settings["method"] = "mws"
    draw.differentiate(case, 3)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    return tuple(vf.tc_terms(t["z"], t["mu"], t["scale"], **case.settings))


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    logvar = fuzz_truth.log_variance(w["scale"], s)
    return fuzz_truth.tc_terms(
        fuzz_pairs.flat(w["z"]),
        fuzz_pairs.flat(w["mu"]),
        fuzz_pairs.flat(logvar),
        s["dataset_size"],
        s.get("method", "mss"),
    )


TRACED = {
    "": traced(lambda z, m, s: vf.tc_terms(z, m, s, dataset_size=5000), P, P, P),
    "mws": traced(lambda z, m, s: vf.tc_terms(z, m, s, dataset_size=5000, method="mws"), P, P, P),
}
SETTINGS = {
    "dataset_size": (
        lambda v, z, m, s: vf.tc_terms(z, m, s, dataset_size=v).tc, (P, P, P)),
    "dataset_size of mws": (
        lambda v, z, m, s: vf.tc_terms(z, m, s, dataset_size=v, method="mws").tc, (P, P, P)),
    "TCLoss beta": (lambda v, z, m, s: vf.nn.TCLoss(9, beta=v)(z, m, s).loss, (P, P, P)),
    "clamp": (
        lambda v, z, m, s: vf.tc_terms(z, m, s, dataset_size=100, clamp=(-v, v)).tc, (P, P, P)),
}  # fmt: skip
