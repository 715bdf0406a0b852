"""`importance_loss`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_truth
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors
from torch import Tensor
from traced_call import traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    case.dims["B"] = draw.size()
    groups, each = draw.pick(1, 2, 3), draw.pick(1, 2, 5)
    bound = draw.pick("iwae", "dreg", "stl", "ciwae", "miwae", "piwae", "renyi")
    case.settings["bound"] = bound
    case.dims["K"] = groups * each
    if bound in ("miwae", "piwae"):
        case.settings["groups"] = groups
    if bound == "ciwae" and draw.chance(0.5):
        case.settings["beta"] = draw.pick(0.0, 0.3, 1.0)
    if bound == "renyi" and draw.chance(0.7):
        case.settings["alpha"] = draw.pick(0.0, 1, 1.5, -1.0)
    if draw.chance(0.6):
        case.settings["reduction"] = draw.pick("sample", "sum", "batchmean")
    case.operands["log_w"] = draw.operand(case, ("K", "B"))
    draw.differentiate(case, 2 if bound == "piwae" else 1)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    found = vf.importance_loss(t["log_w"], **case.settings)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    losses = fuzz_truth.bound(w["log_w"], case.settings["bound"], case.settings)
    reduction = case.settings.get("reduction", "batchmean")
    return tuple(fuzz_truth.reduced(loss, reduction, None) for loss in losses)


BOUNDS = {
    "iwae": {}, "dreg": {}, "stl": {}, "ciwae": {"beta": 0.3}, "miwae": {"groups": 2},
    "piwae": {"groups": 2}, "renyi": {"alpha": 0.7},
}  # fmt: skip
TRACED = {
    bound: traced(lambda w, b=bound, s=settings: vf.importance_loss(w, bound=b, **s), (4, "B"))
    for bound, settings in BOUNDS.items()
}
SETTINGS = {
    "alpha": (lambda v, w: vf.importance_loss(w, bound="renyi", alpha=v), ((4, "B"),)),
    "beta": (lambda v, w: vf.importance_loss(w, bound="ciwae", beta=v), ((4, "B"),)),
}
