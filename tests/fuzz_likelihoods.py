"""Of random cases the likelihoods with their parameters, targets and what is hidden of them."""

from __future__ import annotations

import functools
from typing import Any

import fuzz_truth as truth
import likelihood_cases
import torch
from fuzz_cases import Case, Draw, Operand
from fuzz_operator import Tensors
from torch import Tensor

from vaefast import likelihoods


@functools.cache
def models() -> tuple[tuple[str, dict[str, Any], int], ...]:
    """Every elementwise likelihood with its variants. A setting "tensor" is a learned scalar."""
    found = []
    for case in likelihood_cases.ALL:
        settings = {k: "tensor" if isinstance(v, Tensor) else v for k, v in case.settings.items()}
        found.append((case.name, settings, case.count))
        if case.count == 1 and case.name in ("gaussian", "poisson", "laplace"):
            found.append((case.name, {**settings, "const": False}, 1))
    known = {name for name, *_ in found}
    for name, cls in likelihoods.registered().items():
        if name not in known:
            found.append((name, {}, cls().fewest_params()))
    found.append(("gaussian", {"std": "optimal"}, 1))
    return tuple(found)


@functools.cache
def row_models() -> tuple[tuple[str, dict[str, Any]], ...]:
    """Every likelihood with a class dimension."""
    variants = {
        "categorical": ({}, {"dim": -1}),
        "multinomial": ({}, {"const": False}),
        "discretized_logistic_mixture": (
            {"mixtures": 2}, {"mixtures": 2, "dim": -1}, {"mixtures": 3, "channels": 1},
        ),
    }  # fmt: skip
    return tuple(
        (name, settings) for name in likelihoods.registered_rows() for settings in variants[name]
    )


def build(case: Case, t: Tensors) -> likelihoods.Likelihood:
    """The likelihood of a case; a learned scalar is the operand of that name."""
    assert case.model is not None
    name, settings, _ = case.model
    made = {k: t["scalar"] if v == "tensor" else v for k, v in settings.items()}
    return truth.known(name)(**made)


_TARGETS = {
    "bernoulli": ("bits", "unit", "bytes"),
    "continuous_bernoulli": ("unit", "bytes"),
    "discretized_logistic": ("levels", "bytes"),
}


_PER_COLUMN = {"theta"}


def _value_kind(name: str, settings: dict[str, Any], param: str) -> str:
    if name == "bernoulli" and settings.get("logits") is False:
        return "prob"
    if name == "poisson" and settings.get("log") is False:
        return "exp"
    positive = param in ("mu", "theta", "rate") or param in truth.known(name)().positive_params()
    return "exp" if positive else "normal"


def _target(case: Case, draw: Draw, name: str, settings: dict[str, Any], shape: Any) -> None:
    cls = truth.known(name)
    if torch.int64 in cls.target_dtypes:
        kind, dtype = "counts", draw.pick(draw.float_dtype(), torch.int64, torch.uint8)
    elif name in _TARGETS:
        kind = draw.pick(*_TARGETS[name])
        dtype = torch.uint8 if kind == "bytes" else draw.float_dtype()
        if kind == "bits" and draw.chance(0.4):
            dtype = draw.pick(torch.bool, torch.uint8)
            kind = "bits" if dtype == torch.bool else "bytes"
        if kind == "levels" or (kind == "bytes" and name == "discretized_logistic"):
            model = cls(**settings)
            top = 2**model.bits
            low, high = (0, top - 1) if kind == "bytes" else (model.low, model.high)
            kind = f"levels {top} {low} {high}"
    else:
        kind, dtype = "normal", draw.float_dtype()
        if truth.known(name).__module__ == __name__:
            kind = "exp"
    layout = draw.layout(case, shape, dtype.is_floating_point)
    case.operands["x"] = Operand(tuple(shape), kind, dtype, layout)


def elementwise(case: Case, draw: Draw, linear: bool = False) -> tuple[int, tuple[str, ...]]:
    """The parameters and target of a likelihood per element; lead, and the target's shape."""
    name, settings, count = draw.rng.choice(models())
    # A layer's output is no probability, and an optimal std needs the whole batch.
    while linear and (settings.get("std") == "optimal" or settings.get("logits") is False):
        name, settings, count = draw.rng.choice(models())
    case.model = (name, dict(settings), count)
    case.dims["B"] = draw.size()
    lead = 1
    if draw.chance(0.2):
        case.dims["K"] = draw.pick(1, 2, 3)
        lead = 2
    shape = ("B", *draw.sizes(case, "X", least=1 if linear else 0))
    full = ("K", *shape) if lead == 2 else shape
    names = truth.known(name).param_names
    if not linear:
        for i in range(count):
            kind = _value_kind(name, settings, names[i])
            each: tuple[str, ...] = full
            if names[i] in _PER_COLUMN and i and draw.chance(0.3):
                each = full[-1:]
            case.operands[f"p{i}"] = draw.operand(case, each, kind)
    if "tensor" in settings.values():
        case.operands["scalar"] = draw.operand(case, draw.pick((), (1,)), "exp")
        case.operands["scalar"].layout = "dense"
    _target(case, draw, name, settings, shape)
    return lead, shape


def rows(case: Case, draw: Draw) -> tuple[int, tuple[str, ...]]:
    """The parameters and target of a likelihood with a class dimension; lead, and the shape of its
    elements."""
    name, settings = draw.rng.choice(row_models())
    case.model = (name, dict(settings), 1)
    case.dims["B"] = draw.size(130)
    lead = 2 if draw.chance(0.2) else 1
    if lead == 2:
        case.dims["K"] = draw.pick(1, 2, 3)
    first = ("K", "B") if lead == 2 else ("B",)
    if name == "multinomial":
        case.dims["C"] = draw.size()
        case.operands["p0"] = draw.operand(case, (*first, "C"))
        dtype = draw.pick(draw.float_dtype(), torch.int64, torch.uint8, torch.int32)
        layout = draw.layout(case, ("B", "C"), False)
        case.operands["x"] = Operand(("B", "C"), "counts", dtype, layout)
        return lead, ("B",)
    rest = draw.sizes(case, "X", least=0, most=2)
    last = settings.get("dim", 1) == -1
    if name == "categorical":
        case.dims["C"] = draw.size()
        kind, dtype = f"below {case.dims['C']}", draw.pick(torch.int64, torch.int32, torch.uint8)
        if case.dims["C"] > 255:
            dtype = torch.int64
        shape = ("B", *rest)
    else:
        model = truth.known(name)(**settings)
        case.dims["C"], case.dims["channels"] = model.size, model.channels
        kind, dtype = "levels 256 -1 1", draw.float_dtype()
        if draw.chance(0.4):
            kind, dtype = "levels 256 0 255", torch.uint8
        shape = ("B", *rest, "channels") if last else ("B", "channels", *rest)
    packed = (*first, *rest, "C") if last else (*first, "C", *rest)
    case.operands["p0"] = draw.operand(case, packed)
    case.operands["x"] = Operand(shape, kind, dtype, draw.layout(case, shape, False))
    return lead, ("B", *rest)


_OVERLAPPING = ("expanded batch", "expanded row", "one number", "windows")


def hide(case: Case, draw: Draw) -> None:
    """What is NaN, infinite or a label that is none wherever the mask leaves it out."""
    if "mask" not in case.operands or not draw.chance(0.3):
        return
    named = {"x", "h", "weight", "sample_weight", "prior_mu", "prior_scale"}
    if case.op == "gaussian_kl":
        named |= {"mu", "scale"}
    elif case.op != "sample_kl":
        # The prior of another operator's KL is not masked.
        named -= {"prior_mu", "prior_scale"}
    w = case.operands.get("weight")
    if case.op == "elbo_loss" and w is not None and case.sizes(w.shape) == case.shape("x")[:1]:
        # It weighs the KL too.
        named.discard("weight")
    found = [
        name
        for name, o in case.operands.items()
        if (name in named or name in ("p0", "p1", "p2"))
        and o.layout not in _OVERLAPPING
        and o.dtype != torch.bool
    ]
    if case.op != "elbo_loss" and case.settings.get("reduction") in ("none", "sample"):
        found.append("upstream")
    case.hidden = tuple(name for name in found if draw.chance(0.8))


def sparse(case: Case, draw: Draw) -> None:
    x = case.operands["x"]
    assert case.model is not None
    takes = case.model[0] in (
        "poisson", "negative_binomial", "zero_inflated_negative_binomial", "multinomial"
    )  # fmt: skip
    if takes and len(x.shape) == 2 and draw.chance(0.3):
        case.settings["sparse"] = True
        x.layout = "dense"


def params(case: Case, t: Tensors) -> Any:
    assert case.model is not None
    given = tuple(t[f"p{i}"] for i in range(case.model[2]))
    return given[0] if len(given) == 1 else given


def plain(case: Case) -> dict[str, Any]:
    return {k: v for k, v in case.settings.items() if k != "sparse"}


def _target_values(case: Case, w: Tensors, model: likelihoods.Likelihood) -> Tensor:
    x = w["x"]
    if case.operands["x"].dtype == torch.uint8 and model.uint8_scale != 1:
        x = x / model.uint8_scale
    if "u" in w:
        x = (w["u"] <= _rounded(x, case)).to(x.dtype)
    return x


def _rounded(x: Tensor, case: Case) -> Tensor:
    """An intensity as the kernel compares it: in the compute dtype."""
    wide = any(o.dtype == torch.float64 for n, o in case.operands.items() if n.startswith("p"))
    return x if wide else x.float().double()


def elements_of(case: Case, w: Tensors, params: list[Tensor]) -> tuple[Tensor, int]:
    """-log p per element, unweighted; lead."""
    model = build(case, {"scalar": torch.ones(())})
    if isinstance(model, likelihoods.RowLikelihood):
        lead = 2 if "K" in case.dims else 1
        x = w["x"]
        if case.operands["x"].dtype == torch.uint8 and hasattr(model, "bits"):
            # A byte is the level itself.
            x = model.low + x * (model.high - model.low) / (2**model.bits - 1)
        return truth.rows(model, x, params[0], lead), lead
    x = _target_values(case, w, model)
    lead = 1 + max(p.dim() for p in params) - x.dim()
    assert case.model is not None
    if "tensor" in case.model[1].values():
        params = [*params, w["scalar"].reshape(-1)]
    if case.model[1].get("std") == "optimal" and len(params) == 1:
        y = x.unsqueeze(1) if lead == 2 else x
        errors = (y - params[0]) ** 2
        counts = truth.weighted(
            torch.ones_like(errors), w.get("mask"), w.get("weight"), lead
        ).detach()
        constant = 0.5 * truth.LOG_2PI if model.const else 0.0
        return truth.optimal(errors, counts, constant), lead
    small = torch.ones(1, 1, dtype=torch.float64)
    like = torch.zeros(1, 1, dtype=case.operands["x"].dtype)
    count = case.model[2]
    chosen = model.form_for((small,) * count, like)
    return truth.likelihood(chosen.name, chosen.numbers, x, params), lead


@torch.no_grad()
def nll_size(case: Case, w: Tensors) -> float:
    """The largest -log p of an element."""
    assert case.model is not None
    elements, _ = elements_of(case, w, [w[f"p{i}"] for i in range(case.model[2])])
    return float(elements.abs().max()) if elements.numel() else 0.0
