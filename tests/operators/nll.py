"""`nll`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_likelihoods
import fuzz_truth
import torch
from fuzz_cases import Case, Draw
from fuzz_operator import REDUCTIONS, Tensors, tensors_of
from torch import Tensor
from traced_call import X

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    rows = draw.chance(0.2)
    _, shape = (
        fuzz_likelihoods.rows(case, draw) if rows else fuzz_likelihoods.elementwise(case, draw)
    )
    draw.mask_and_weight(case, shape, p=0.2)
    if draw.chance(0.7):
        case.settings["reduction"] = draw.pick(*REDUCTIONS)
    fuzz_likelihoods.sparse(case, draw)
    assert case.model is not None
    if case.model[0] == "bernoulli" and draw.chance(0.2):
        case.model[1]["binarize"] = True
        draw.noise(case)
        if case.noise == "noise":
            case.noise = "seed"
    fuzz_likelihoods.hide(case, draw)
    draw.differentiate(case, 1)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given = tensors_of(t, "mask", "weight")
    return (
        vf.nll(
            fuzz_likelihoods.params(case, t),
            t["x"],
            fuzz_likelihoods.build(case, t),
            **given,
            **fuzz_likelihoods.plain(case),
            **noise,
        ),
    )


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    assert case.model is not None
    elements, lead = fuzz_likelihoods.elements_of(
        case, w, [w[f"p{i}"] for i in range(case.model[2])]
    )
    elements = fuzz_truth.weighted(elements, w.get("mask"), w.get("weight"), lead)
    reduction = case.settings.get("reduction", "batchmean")
    return (fuzz_truth.reduced(elements, reduction, w.get("mask"), lead),)


SHARE = 4


def _mean(v: float, m: Tensor) -> Any:
    return vf.nll(m, torch.zeros_like(m), vf.Gaussian(std=v))


# The likelihoods' own calls are made of their registry.
TRACED: dict[str, Any] = {}
SETTINGS = {
    "Gaussian std": (_mean, (("B", X),)),
    "Laplace scale": (
        lambda v, m: vf.nll(m, torch.zeros_like(m), vf.Laplace(scale=v)), (("B", X),)),
    "StudentT df": (
        lambda v, m: vf.nll(m, torch.zeros_like(m), vf.StudentT(df=v)), (("B", X),)),
    "StudentT scale": (
        lambda v, m: vf.nll(m, torch.zeros_like(m), vf.StudentT(scale=v)), (("B", X),)),
    "LogCosh scale": (
        lambda v, m: vf.nll(m, torch.zeros_like(m), vf.LogCosh(scale=v)), (("B", X),)),
}  # fmt: skip
