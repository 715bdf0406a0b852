"""`mixture_log_prob`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_pairs
import fuzz_truth
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors, tensors_of
from torch import Tensor
from traced_call import D, P, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    case.dims["M"] = draw.size(64)
    latent = draw.sizes(case, "L", least=0, most=2)
    case.dims.update({d: min(case.dims[d], 17) for d in latent})
    lead = draw.pick((), ("B",), ("B",), ("K", "B"))
    for name in lead:
        case.dims[name] = draw.size(64)
    kind = draw.posterior(case)
    case.operands["z"] = draw.operand(case, (*lead, *latent))
    case.operands["mu"] = draw.operand(case, ("M", *latent))
    case.operands["scale"] = draw.operand(case, ("M", *latent), kind)
    if draw.chance(0.4):
        case.operands["log_weights"] = draw.operand(case, ("M",))
    draw.differentiate(case, 1)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given = tensors_of(t, "log_weights")
    return (vf.mixture_log_prob(t["z"], t["mu"], t["scale"], **given, **case.settings),)


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    logvar = fuzz_truth.log_variance(w["scale"], case.settings)
    latent = len(case.operands["mu"].shape) - 1
    z = w["z"]
    lead = z.shape[1 : z.dim() - latent]
    mu, logvar = fuzz_pairs.flat(w["mu"]), fuzz_pairs.flat(logvar)
    flat = z.reshape(z.shape[0], lead.numel(), mu.shape[-1])
    values = fuzz_truth.mixture_log_prob(flat, mu, logvar, w.get("log_weights"))
    return (values.reshape(z.shape[0], *lead),)


TRACED = {
    "": traced(
        lambda z, m, s, w: vf.mixture_log_prob(z, m, s, w),
        P,
        (4, D),
        (4, D),
        (4,),
    ),
}
SETTINGS = {
    "clamp": (
        lambda v, z, m, s: vf.mixture_log_prob(z, m, s, clamp=(-v, v)), (P, (4, D), (4, D))),
}  # fmt: skip
