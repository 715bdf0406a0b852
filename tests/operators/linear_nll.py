"""`linear_nll`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_likelihoods
import fuzz_truth
import torch
from fuzz_cases import Case, Draw
from fuzz_operator import REDUCTIONS, Tensors, tensors_of
from torch import Tensor
from traced_call import D, P, X, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    while True:
        case.operands.clear()
        case.dims.clear()
        rows = draw.chance(0.25)
        _, shape = (
            fuzz_likelihoods.rows(case, draw)
            if rows
            else fuzz_likelihoods.elementwise(case, draw, linear=True)
        )
        assert case.model is not None
        name, settings, count = case.model
        if rows and not (name == "multinomial" or settings.get("dim") == -1):
            continue
        if rows and name == "discretized_logistic_mixture":
            continue
        break
    if draw.dtype in (torch.bfloat16, torch.float16) and draw.chance(0.7):
        draw.dtype = torch.float32
    lead = ("K",) if "K" in case.dims else ()
    width = "C" if rows else shape[-1]
    body = shape if name in ("categorical", "multinomial") else shape[:-1]
    case.operands.pop("p0", None)
    case.dims["H"] = draw.size(64)
    dtype = draw.dtype
    case.operands["h"] = draw.operand(case, (*lead, *body, "H"), dtype=dtype)
    for i in range(count):
        bare = i and draw.chance(0.2)
        if not bare:
            case.operands[f"w{i}"] = draw.operand(case, (width, "H"), dtype=dtype)
            case.operands[f"w{i}"].scale = 0.3
        if bare or draw.chance(0.7):
            case.operands[f"b{i}"] = draw.operand(case, (width,), dtype=dtype)
    case.operands["h"].scale = 0.5
    case.grid = False
    if draw.chance(0.3):
        case.settings["memory"] = draw.pick(1, 200, 3000)
    links = _links(case)
    if "exp" in links and draw.chance(0.2):
        case.settings["link"] = tuple("softplus" if link == "exp" else link for link in links)
    draw.mask_and_weight(case, shape, "sample_weight", p=0.2)
    choices = REDUCTIONS if rows else REDUCTIONS[1:]
    if draw.chance(0.7):
        case.settings["reduction"] = draw.pick(*choices)
    fuzz_likelihoods.sparse(case, draw)
    fuzz_likelihoods.hide(case, draw)
    draw.differentiate(case, 1)
    case.grid = False


def _links(case: Case) -> tuple[str, ...]:
    assert case.model is not None
    name, settings, count = case.model
    if "link" in case.settings:
        return case.settings["link"]
    model = fuzz_truth.known(name)(**{k: v for k, v in settings.items() if v != "tensor"})
    positive = model.positive_params()
    found = tuple("exp" if n in positive else "identity" for n in model.param_names)[:count]
    return found


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    assert case.model is not None
    count = case.model[2]
    weights = tuple(t.get(f"w{i}") for i in range(count))
    biases = tuple(t.get(f"b{i}") for i in range(count))
    given = tensors_of(t, "mask", "sample_weight")
    if count == 1:
        heads: tuple[Any, Any] = (weights[0], biases[0])
    else:
        heads = (weights, biases)
    return (
        vf.linear_nll(
            t["h"],
            *heads,
            t["x"],
            fuzz_likelihoods.build(case, t),
            **given,
            **fuzz_likelihoods.plain(case),
        ),
    )


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    assert case.model is not None
    params = []
    for i, link in enumerate(_links(case)):
        h = w["h"]
        if f"w{i}" in w:
            matrix = w[f"w{i}"].transpose(1, 2)
            rows = h.reshape(h.shape[0], h.shape[1:-1].numel(), h.shape[-1])
            value = torch.matmul(rows, matrix).reshape(*h.shape[:-1], matrix.shape[-1])
            if f"b{i}" in w:
                value = value + fuzz_truth.aligned(w[f"b{i}"], h.dim() - 1)
        else:
            bias = fuzz_truth.aligned(w[f"b{i}"], h.dim() - 1)
            value = bias.expand(*h.shape[:-1], bias.shape[-1])
        if link == "exp":
            value = value.exp()
        elif link == "softplus":
            value = torch.logaddexp(value, torch.zeros((), dtype=value.dtype))
        params.append(value)
    elements, lead = fuzz_likelihoods.elements_of(case, w, params)
    elements = fuzz_truth.weighted(elements, w.get("mask"), w.get("sample_weight"), lead)
    reduction = case.settings.get("reduction", "batchmean")
    return (fuzz_truth.reduced(elements, reduction, w.get("mask"), lead),)


TRACED = {
    "": traced(
        lambda h, w, b, x: vf.linear_nll(h, w, b, x.sigmoid(), "bernoulli"),
        P,
        (X, D),
        (X,),
        ("B", X),
        leaves=3,
    ),
    "rows": traced(
        lambda h, w, x: vf.linear_nll(h, w, None, x.abs().round(), "multinomial", reduction="sum"),
        P,
        (X, D),
        ("B", X),
        leaves=2,
    ),
}
SETTINGS = {
    "Gaussian std": (
        lambda v, h, w, x: vf.linear_nll(h, w, None, x, vf.Gaussian(std=v)), (P, (X, D), ("B", X))),
}  # fmt: skip
