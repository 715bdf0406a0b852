"""`tril_sample_kl`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_posteriors
import fuzz_truth
import torch
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors
from torch import Tensor
from traced_call import D, P, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    case.dims["B"] = draw.size(64)
    case.dims["D"] = min(17, draw.size())
    case.operands["mu"] = draw.operand(case, ("B", "D"))
    case.operands["tril"] = draw.operand(case, ("B", "D", "D"), "lower")
    case.operands["tril"].layout = draw.pick("dense", "first two swapped", "every second row")
    fuzz_posteriors.samples(case, draw)
    if draw.chance(0.5):
        case.settings["reduction"] = draw.pick("batchmean", "sum")
    draw.differentiate(case, 2)
    case.grid = False


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    return vf.tril_sample_kl(t["mu"], t["tril"], **case.settings, **noise)


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    mu, lower, eps = w["mu"], torch.tril(w["tril"]), w["eps"]
    temperature = case.settings.get("temperature", 1.0)
    if eps.dim() == 4:
        z = mu.unsqueeze(1) + temperature * torch.einsum("tbij,tkbj->tkbi", lower, eps)
    else:
        z = mu + temperature * torch.einsum("tbij,tbj->tbi", lower, eps)
    d = 2 * lower.diagonal(dim1=-2, dim2=-1).log()
    off = torch.tril(lower, -1).square().sum((-2, -1))
    kl = 0.5 * (off + (mu**2 + fuzz_truth.expm1_minus(d)).sum(-1))
    return z, fuzz_truth.reduced(kl, case.settings.get("reduction", "sample"), None)


TRACED = {
    "": traced(
        lambda m, t: vf.tril_sample_kl(m, torch.tril(t, -1) + torch.eye(D, dtype=t.dtype), seed=3),
        P,
        ("B", D, D),
    ),
}
SETTINGS = {
    "temperature": (
        lambda v, m, t: vf.tril_sample_kl(
            m, torch.tril(t, -1) + torch.eye(D), seed=1, temperature=v), (P, ("B", D, D))),
}  # fmt: skip
