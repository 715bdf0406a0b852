"""`mmd`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_pairs
import fuzz_truth
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors
from torch import Tensor
from traced_call import D, P, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    case.dims["N"], case.dims["M"] = max(2, draw.size(64)), max(2, draw.size(64))
    latent = draw.sizes(case, "L", least=0, most=2)
    case.dims.update({d: max(1, min(case.dims[d], 17)) for d in latent})
    case.operands["x"] = draw.operand(case, ("N", *latent))
    case.operands["y"] = draw.operand(case, ("M", *latent))
    if draw.chance(0.4):
        case.settings["kernel"] = "rbf"
    if draw.chance(0.4):
        case.settings["scales"] = draw.pick((1.0,), (0.5, 2.0, 4.0))
    if draw.chance(0.4):
        case.settings["unbiased"] = False
    draw.differentiate(case, 1)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    return (vf.mmd(t["x"], t["y"], **case.settings),)


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    kernel = s.get("kernel", "imq")
    return (
        fuzz_truth.mmd(
            fuzz_pairs.flat(w["x"]),
            fuzz_pairs.flat(w["y"]),
            kernel,
            s.get("scales"),
            s.get("unbiased", True),
        ),
    )


TRACED = {
    "": traced(lambda x, y: vf.mmd(x, y), P, (7, D)),
    "rbf": traced(
        lambda x, y: vf.mmd(x, y, kernel="rbf", scales=[1.0, 2.0], unbiased=False), P, (7, D)
    ),
}
SETTINGS = {
    "scales": (lambda v, x, y: vf.mmd(x, y, scales=(v, 2 * v)), (P, (7, D))),
    "rbf scales": (
        lambda v, x, y: vf.mmd(x, y, kernel="rbf", scales=(v, 2 * v)), (P, (7, D))),
}  # fmt: skip
