"""Every operator that is fuzzed: a random case of it, its call, and its formula in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import fuzz_truth as truth
import likelihood_cases
import torch
from fuzz_cases import Case, Draw, Operand
from torch import Tensor

import vaefast as vf
from vaefast import likelihoods

Tensors = dict[str, Tensor]

REDUCTIONS = ("none", "sample", "batchmean", "sum", "mean")
TRANSFORM = ("param", "min_std", "clamp")


class Operator(NamedTuple):
    """`make` fills a case; `call` gives the outputs of one call from its tensors and noise;
    `truth` those of all calls in float64, from `[CALLS, *shape]` tensors."""

    make: Callable[[Case, Draw], None]
    call: Callable[[Case, Tensors, dict[str, Any]], tuple[Tensor, ...]]
    truth: Callable[[Case, Tensors], tuple[Tensor, ...]]


def _some(case: Case, *names: str) -> dict[str, Any]:
    return {n: case.settings[n] for n in names if n in case.settings}


def _given(t: Tensors, *names: str) -> Tensors:
    return {n: t[n] for n in names if n in t}


# The posterior.


def _posterior(case: Case, draw: Draw) -> tuple[str, ...]:
    case.dims["B"] = draw.size()
    shape = ("B", *draw.sizes(case, "D", least=0))
    kind = draw.posterior(case)
    case.operands["mu"] = draw.operand(case, shape)
    if draw.chance(0.3) and len(shape) > 1:
        # As a network gives them: one tensor cut in two.
        case.operands["mu"].layout = "first half"
    case.operands["scale"] = draw.operand(case, shape, kind)
    if case.operands["mu"].layout == "first half":
        case.operands["scale"].layout = "second half"
    return shape


def _prior(case: Case, draw: Draw, shape: tuple[str | int, ...], p: float = 0.2) -> None:
    kind = case.operands["scale"].kind
    if draw.chance(p):
        case.operands["prior_mu"] = draw.operand(case, draw.broadcast(shape), grad=0.7)
    if draw.chance(p):
        case.operands["prior_scale"] = draw.operand(case, draw.broadcast(shape), kind, grad=0.7)


def _samples(case: Case, draw: Draw) -> None:
    draw.noise(case)
    if draw.chance(0.2):
        case.settings["num_samples"] = case.dims["K"] = draw.pick(1, 2, 3)
    if draw.chance(0.2):
        case.settings["temperature"] = draw.pick(0.7, 0.0, 2.0)
    if case.noise == "noise":
        lead = ("K",) if "num_samples" in case.settings else ()
        shape = (*lead, *case.operands["mu"].shape)
        case.operands["noise"] = draw.operand(case, shape, grad=0.0)


def _rsample(case: Case, draw: Draw) -> None:
    _posterior(case, draw)
    _samples(case, draw)
    draw.differentiate(case, 1)


def _rsample_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    return (vf.rsample(t["mu"], t["scale"], **case.settings, **noise),)


def _z(case: Case, w: Tensors, logvar: Tensor) -> Tensor:
    return truth.sample(w["mu"], logvar, w["eps"], case.settings.get("temperature", 1.0))


def _rsample_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    return (_z(case, w, truth.log_variance(w["scale"], case.settings)),)


def _prior_logvar(case: Case, w: Tensors) -> Tensor | None:
    scale = w.get("prior_scale")
    return None if scale is None else truth.log_variance(scale, case.settings, clamp=False)


def _kl_elements(case: Case, w: Tensors, logvar: Tensor) -> Tensor:
    elements = truth.kl(w["mu"], logvar, w.get("prior_mu"), _prior_logvar(case, w))
    return truth.weighted(elements, w.get("mask"), w.get("weight"))


def _kl(case: Case, draw: Draw) -> None:
    shape = _posterior(case, draw)
    _prior(case, draw, shape)
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
    _hide(case, draw)
    draw.differentiate(case, 1)


def _kl_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given = _given(t, "prior_mu", "prior_scale", "mask", "weight")
    return (vf.gaussian_kl(t["mu"], t["scale"], **given, **case.settings),)


def _kl_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    elements = _kl_elements(case, w, truth.log_variance(w["scale"], s))
    reduction, mask = s.get("reduction", "batchmean"), w.get("mask")
    if s.get("free_bits", 0) > 0:
        per = s.get("free_bits_per", "dim")
        return (truth.free_bits(elements, s["free_bits"], per, reduction, mask),)
    return (truth.reduced(elements, reduction, mask),)


def _sample_kl(case: Case, draw: Draw) -> None:
    shape = _posterior(case, draw)
    _samples(case, draw)
    _prior(case, draw, shape, 0.15)
    if draw.chance(0.25):
        case.settings["estimator"] = "monte_carlo"
        if draw.chance(0.3):
            case.settings["stop_posterior"] = True
        reduction = draw.pick("sample", "sample", "batchmean", "sum")
    else:
        draw.mask_and_weight(case, shape, p=0.15)
        reduction = draw.pick("sample", "sample", *REDUCTIONS, "dim")
    if reduction != "sample":
        case.settings["reduction"] = reduction
    _hide(case, draw)
    draw.differentiate(case, 2)


def _sample_kl_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given = _given(t, "prior_mu", "prior_scale", "mask", "weight")
    return vf.sample_kl(t["mu"], t["scale"], **given, **case.settings, **noise)


def _sample_kl_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    logvar = truth.log_variance(w["scale"], s)
    z, reduction = _z(case, w, logvar), s.get("reduction", "sample")
    if s.get("estimator") != "monte_carlo":
        return z, truth.reduced(_kl_elements(case, w, logvar), reduction, w.get("mask"))
    lead, zero = 1 + (z.dim() - w["mu"].dim()), torch.zeros((), dtype=z.dtype)
    mu, latent = w["mu"], w["mu"].dim() - 1
    # z - mu: the noise itself, and not the difference, which by sigma^2 may be off by anything.
    centred = truth.sample(torch.zeros_like(mu), logvar, w["eps"], s.get("temperature", 1.0))
    if s.get("stop_posterior"):
        shift = mu - mu.detach()
        centred = centred + (shift.unsqueeze(1) if lead == 2 else shift)
        logvar = logvar.detach()
    dims = latent + lead - 1
    log_q = truth.log_normal(centred, zero, logvar.unsqueeze(1) if lead == 2 else logvar)
    prior_mu, prior_logvar = w.get("prior_mu"), _prior_logvar(case, w)
    log_p = truth.log_normal(
        z,
        zero if prior_mu is None else truth.aligned(prior_mu, dims),
        zero if prior_logvar is None else truth.aligned(prior_logvar, dims),
    )
    return z, truth.reduced(truth.summed(log_q - log_p, lead), reduction, None, lead)


# Likelihoods.


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


def _elementwise(case: Case, draw: Draw, linear: bool = False) -> tuple[int, tuple[str, ...]]:
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


def _rows(case: Case, draw: Draw) -> tuple[int, tuple[str, ...]]:
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


def _nll(case: Case, draw: Draw) -> None:
    rows = draw.chance(0.2)
    _, shape = _rows(case, draw) if rows else _elementwise(case, draw)
    draw.mask_and_weight(case, shape, p=0.2)
    if draw.chance(0.7):
        case.settings["reduction"] = draw.pick(*REDUCTIONS)
    _sparse(case, draw)
    assert case.model is not None
    if case.model[0] == "bernoulli" and draw.chance(0.2):
        case.model[1]["binarize"] = True
        draw.noise(case)
        if case.noise == "noise":
            case.noise = "seed"
    _hide(case, draw)
    draw.differentiate(case, 1)


_OVERLAPPING = ("expanded batch", "expanded row", "one number", "windows")


def _hide(case: Case, draw: Draw) -> None:
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


def _sparse(case: Case, draw: Draw) -> None:
    x = case.operands["x"]
    assert case.model is not None
    takes = case.model[0] in (
        "poisson", "negative_binomial", "zero_inflated_negative_binomial", "multinomial"
    )  # fmt: skip
    if takes and len(x.shape) == 2 and draw.chance(0.3):
        case.settings["sparse"] = True
        x.layout = "dense"


def _params(case: Case, t: Tensors) -> Any:
    assert case.model is not None
    given = tuple(t[f"p{i}"] for i in range(case.model[2]))
    return given[0] if len(given) == 1 else given


def _plain(case: Case) -> dict[str, Any]:
    return {k: v for k, v in case.settings.items() if k != "sparse"}


def _nll_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given = _given(t, "mask", "weight")
    return (vf.nll(_params(case, t), t["x"], build(case, t), **given, **_plain(case), **noise),)


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


def _elements(case: Case, w: Tensors, params: list[Tensor]) -> tuple[Tensor, int]:
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
    elements, _ = _elements(case, w, [w[f"p{i}"] for i in range(case.model[2])])
    return float(elements.abs().max()) if elements.numel() else 0.0


def _nll_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    assert case.model is not None
    elements, lead = _elements(case, w, [w[f"p{i}"] for i in range(case.model[2])])
    elements = truth.weighted(elements, w.get("mask"), w.get("weight"), lead)
    reduction = case.settings.get("reduction", "batchmean")
    return (truth.reduced(elements, reduction, w.get("mask"), lead),)


# A linear layer before it.


def _linear(case: Case, draw: Draw) -> None:
    while True:
        case.operands.clear()
        case.dims.clear()
        rows = draw.chance(0.25)
        _, shape = _rows(case, draw) if rows else _elementwise(case, draw, linear=True)
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
    _sparse(case, draw)
    _hide(case, draw)
    draw.differentiate(case, 1)
    case.grid = False


def _links(case: Case) -> tuple[str, ...]:
    assert case.model is not None
    name, settings, count = case.model
    if "link" in case.settings:
        return case.settings["link"]
    model = truth.known(name)(**{k: v for k, v in settings.items() if v != "tensor"})
    positive = model.positive_params()
    found = tuple("exp" if n in positive else "identity" for n in model.param_names)[:count]
    return found


def _linear_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    assert case.model is not None
    count = case.model[2]
    weights = tuple(t.get(f"w{i}") for i in range(count))
    biases = tuple(t.get(f"b{i}") for i in range(count))
    given = _given(t, "mask", "sample_weight")
    if count == 1:
        heads: tuple[Any, Any] = (weights[0], biases[0])
    else:
        heads = (weights, biases)
    return (vf.linear_nll(t["h"], *heads, t["x"], build(case, t), **given, **_plain(case)),)


def _linear_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    assert case.model is not None
    params = []
    for i, link in enumerate(_links(case)):
        h = w["h"]
        if f"w{i}" in w:
            matrix = w[f"w{i}"].transpose(1, 2)
            rows = h.reshape(h.shape[0], h.shape[1:-1].numel(), h.shape[-1])
            value = torch.matmul(rows, matrix).reshape(*h.shape[:-1], matrix.shape[-1])
            if f"b{i}" in w:
                value = value + truth.aligned(w[f"b{i}"], h.dim() - 1)
        else:
            bias = truth.aligned(w[f"b{i}"], h.dim() - 1)
            value = bias.expand(*h.shape[:-1], bias.shape[-1])
        if link == "exp":
            value = value.exp()
        elif link == "softplus":
            value = torch.logaddexp(value, torch.zeros((), dtype=value.dtype))
        params.append(value)
    elements, lead = _elements(case, w, params)
    elements = truth.weighted(elements, w.get("mask"), w.get("sample_weight"), lead)
    reduction = case.settings.get("reduction", "batchmean")
    return (truth.reduced(elements, reduction, w.get("mask"), lead),)


# The ELBO.


def _elbo(case: Case, draw: Draw) -> None:
    rows = draw.chance(0.15)
    lead, shape = _rows(case, draw) if rows else _elementwise(case, draw)
    s = case.settings
    draw.mask_and_weight(case, shape, p=0.12)
    reduction = draw.pick("batchmean", "batchmean", "sum", "mean", "sample")
    if reduction != "batchmean":
        s["reduction"] = reduction
    if draw.chance(0.5):
        case.operands["kl"] = draw.operand(
            case,
            ("K", "B") if lead == 2 and draw.chance(0.5) else ("B",),
            "exp",
            dtype=case.compute("p0", "p1", "p2"),
        )
    else:
        case.dims["L"] = draw.size(64)
        kind = draw.posterior(case)
        case.operands["mu"] = draw.operand(case, ("B", "L"))
        case.operands["scale"] = draw.operand(case, ("B", "L"), kind)
        _prior(case, draw, ("B", "L"), 0.15)
    apart = reduction == "sample"
    if draw.chance(0.3):
        s["beta"] = draw.pick(0.5, 0.0, 4)
    elif draw.chance(0.2):
        case.operands["beta"] = draw.operand(case, draw.pick((), ("B",)), "positive", grad=0.3)
        apart |= bool(case.operands["beta"].shape)
    if draw.chance(0.2):
        s["capacity"] = draw.pick(0.0, 1.0, 25.0)
        apart = True
    w = case.operands.get("weight")
    # As the library reads it: a shape that happens to be [B] is one value per sample.
    apart |= w is not None and case.sizes(w.shape) == case.shape("x")[:1]
    if draw.chance(0.15):
        s["free_bits"] = draw.pick(0.1, 2.0)
        allowed = ["sample"]
        if not apart:
            allowed += ["total"] if "kl" in case.operands else ["total", "dim"]
        s["free_bits_per"] = draw.pick(*allowed)
    _sparse(case, draw)
    _hide(case, draw)
    draw.differentiate(case, 1)


def _elbo_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    names = ("mu", "scale", "kl", "prior_mu", "prior_scale", "mask", "weight", "beta")
    out = vf.elbo_loss(
        _params(case, t), t["x"], likelihood=build(case, t), **_given(t, *names), **_plain(case)
    )
    return tuple(out)


def _elbo_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    assert case.model is not None
    mask, weight = w.get("mask"), w.get("weight")
    elements, lead = _elements(case, w, [w[f"p{i}"] for i in range(case.model[2])])
    elements = truth.weighted(elements, mask, weight, lead)
    data = truth.by_sample(elements, lead)
    bits, per = s.get("free_bits", 0.0), s.get("free_bits_per", "dim")
    reduction = s.get("reduction", "batchmean")
    batch = data.shape[-1]
    parts = None
    if "kl" in w:
        raw = w["kl"]
    else:
        logvar = truth.log_variance(w["scale"], s)
        parts = truth.kl(w["mu"], logvar, w.get("prior_mu"), _prior_logvar(case, w))
        raw = truth.by_sample(parts)

    def floor(v: Tensor) -> Tensor:
        return torch.where(v >= bits, v, bits)

    def mean(v: Tensor) -> Tensor:
        return v.flatten(1).sum(1) / max(1, v.shape[1:].numel())

    cost, whole = raw, None
    if bits > 0:
        if per == "sample":
            cost = floor(raw)
        elif per == "total":
            whole = floor(mean(raw))
        else:
            assert parts is not None
            whole = truth.free_bits(parts, bits, "dim", "batchmean", None)
    if s.get("capacity") is not None:
        cost = (cost - s["capacity"]).abs()
    per_sample = weight is not None and weight.shape[1:] == w["x"].shape[1:2]
    lead_shape = data.shape[1:]

    def spread(v: Tensor) -> Tensor:
        return truth.aligned(v, len(lead_shape))

    if per_sample:
        cost = spread(cost) * spread(weight)
    beta = s.get("beta", 1.0)
    if "beta" in w:
        beta = w["beta"]
    if reduction == "sample":
        b = spread(beta) if isinstance(beta, Tensor) else beta
        loss = data + b * spread(cost)
        return loss, data.detach(), raw.detach()
    if whole is not None:
        b = beta.reshape(beta.shape[0], -1).mean(1) if isinstance(beta, Tensor) else beta
        loss = mean(data) + b * whole
    else:
        b = spread(beta) if isinstance(beta, Tensor) else beta
        loss = mean(data) + mean(b * spread(cost))
    if reduction == "sum":
        loss = loss * lead_shape.numel()
    elif reduction == "mean":
        shape = elements.shape[lead:]
        if mask is None:
            each = shape[1:].numel()
            loss = loss / each if each else loss * 0.0
        else:
            ones = truth.weighted(torch.ones_like(elements), mask, None, lead)
            copies = elements.shape[1] if lead == 2 else 1
            kept = ones.flatten(1).sum(1) / copies
            loss = loss * batch / kept.clamp(min=1)
            loss = torch.where(kept > 0, loss, 0.0)
    return loss, mean(data).detach(), mean(raw).detach()


# Many samples.


def _log_weights(case: Case, draw: Draw) -> None:
    lead, shape = _elementwise(case, draw)
    latent = draw.sizes(case, "L", least=1, most=2)
    first = ("K", "B") if lead == 2 else ("B",)
    kind = draw.posterior(case)
    case.operands["mu"] = draw.operand(case, ("B", *latent))
    case.operands["scale"] = draw.operand(case, ("B", *latent), kind)
    case.operands["z"] = draw.operand(case, (*first, *latent))
    if draw.chance(0.2):
        case.operands["log_prior"] = draw.operand(case, first)
    else:
        _prior(case, draw, ("B", *latent))
    if draw.chance(0.3):
        case.settings["stop_posterior"] = True
    draw.mask_and_weight(case, shape, p=0.12)
    _hide(case, draw)
    draw.differentiate(case, 1)


def _log_weights_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given = _given(t, "prior_mu", "prior_scale", "log_prior", "mask", "weight")
    x, model = t["x"], build(case, t)
    args = (_params(case, t), x, t["z"], t["mu"], t["scale"])
    return (vf.log_weights(*args, likelihood=model, **given, **_plain(case)),)


def _log_density(
    case: Case,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    of: Callable[[Tensor], Tensor] = torch.positive,
) -> Tensor:
    """log N(z; mu, e^logvar), or what is `of` each, summed over the latent dimensions, broadcast
    over K."""
    dims = z.dim() - 1
    lead = dims - len(case.operands["mu"].shape) + 1
    m, v = (truth.aligned(t, dims) for t in (mu, logvar))
    return truth.summed(of(truth.log_normal(z, m, v)).expand(z.shape), lead)


def _log_prior(case: Case, w: Tensors, z: Tensor) -> Tensor:
    zero = torch.zeros(z.shape[0], dtype=z.dtype)
    prior = _prior_logvar(case, w)
    return _log_density(case, z, w.get("prior_mu", zero), zero if prior is None else prior)


def _log_weights_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    assert case.model is not None
    mu, logvar = w["mu"], truth.log_variance(w["scale"], case.settings)
    if case.settings.get("stop_posterior"):
        mu, logvar = mu.detach(), logvar.detach()
    log_q = _log_density(case, w["z"], mu, logvar)
    log_p = w["log_prior"] if "log_prior" in w else _log_prior(case, w, w["z"])
    elements, lead = _elements(case, w, [w[f"p{i}"] for i in range(case.model[2])])
    elements = truth.weighted(elements, w.get("mask"), w.get("weight"), lead)
    return (log_p - log_q - truth.by_sample(elements, lead),)


@torch.no_grad()
def densities_size(case: Case, w: Tensors) -> float:
    """The largest terms of log q(z|x) and of log p(z), summed over a sample without their signs."""
    prior = _prior_logvar(case, w)
    zero = torch.zeros(w["z"].shape[0], dtype=torch.float64)
    pairs = (
        ("z", w["mu"], truth.log_variance(w["scale"], case.settings)),
        ("z_flow", w.get("prior_mu", zero), zero if prior is None else prior),
    )
    sizes = [_log_density(case, w.get(z, w["z"]), m, v, torch.abs) for z, m, v in pairs]
    return sum(float(size.max()) for size in sizes if size.numel())


def _importance(case: Case, draw: Draw) -> None:
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


def _importance_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    found = vf.importance_loss(t["log_w"], **case.settings)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _importance_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    losses = truth.bound(w["log_w"], case.settings["bound"], case.settings)
    reduction = case.settings.get("reduction", "batchmean")
    return tuple(truth.reduced(loss, reduction, None) for loss in losses)


def _monte_carlo(case: Case, draw: Draw) -> None:
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


def _monte_carlo_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given: dict[str, Any] = {**_given(t, "log_det", "z_flow", "prior")}
    if "prior_mu" in t:
        given["prior"] = (t["prior_mu"], t["prior_scale"])
    return (vf.monte_carlo_kl(t["z"], t["mu"], t["scale"], **given, **case.settings),)


def _monte_carlo_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    mu, logvar = w["mu"], truth.log_variance(w["scale"], s)
    if s.get("stop_posterior"):
        mu, logvar = mu.detach(), logvar.detach()
    kl = _log_density(case, w["z"], mu, logvar)
    at = w.get("z_flow", w["z"])
    kl = kl - (w["prior"] if "prior" in w else _log_prior(case, w, at))
    if "log_det" in w:
        kl = kl - truth.aligned(w["log_det"], kl.dim() - 1)
    lead = 2 if "K" in case.dims else 1
    return (truth.reduced(kl, s.get("reduction", "sample"), None, lead),)


# Pairs of samples.


def _tc(case: Case, draw: Draw) -> None:
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


def _tc_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    return tuple(vf.tc_terms(t["z"], t["mu"], t["scale"], **case.settings))


def _flat(t: Tensor, lead: int = 1) -> Tensor:
    """`[CALLS, N, D]`, all latent dimensions in one."""
    return t.reshape(*t.shape[: lead + 1], t.shape[lead + 1 :].numel())


def _tc_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    logvar = truth.log_variance(w["scale"], s)
    return truth.tc_terms(
        _flat(w["z"]), _flat(w["mu"]), _flat(logvar), s["dataset_size"], s.get("method", "mss")
    )


def _mixture(case: Case, draw: Draw) -> None:
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


def _mixture_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given = _given(t, "log_weights")
    return (vf.mixture_log_prob(t["z"], t["mu"], t["scale"], **given, **case.settings),)


def _mixture_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    logvar = truth.log_variance(w["scale"], case.settings)
    latent = len(case.operands["mu"].shape) - 1
    z = w["z"]
    lead = z.shape[1 : z.dim() - latent]
    mu, logvar = _flat(w["mu"]), _flat(logvar)
    flat = z.reshape(z.shape[0], lead.numel(), mu.shape[-1])
    values = truth.mixture_log_prob(flat, mu, logvar, w.get("log_weights"))
    return (values.reshape(z.shape[0], *lead),)


@torch.no_grad()
def pair_log_density(case: Case, w: Tensors) -> float:
    """The largest sum of the terms of log N(z_i; mu_j, sigma_j^2), each taken without its sign."""
    logvar = truth.log_variance(w["scale"], case.settings)
    mu = _flat(w["mu"])
    z = w["z"].reshape(w["z"].shape[0], -1, mu.shape[-1]) if mu.numel() else w["z"]
    if not z.numel() or not mu.numel():
        return 0.0
    pairs = truth.log_normal(z.unsqueeze(2), mu.unsqueeze(1), _flat(logvar).unsqueeze(1))
    return float(pairs.abs().sum(-1).max())


def pair_gradient(case: Case, w: Tensors, name: str) -> float:
    """The largest derivative of log N(z_i; mu_j, sigma_j^2)'s terms in one number of `name`
    ("gradient of mu"), each taken without its sign: where they cancel, no more is known."""
    scale = w["scale"].detach().requires_grad_()
    logvar = truth.log_variance(scale, case.settings)
    (slope,) = torch.autograd.grad(logvar.sum(), scale)
    mu, logvar = _flat(w["mu"].detach()), _flat(logvar.detach())
    if not mu.numel() or not w["z"].numel():
        return 0.0
    z = w["z"].detach().reshape(w["z"].shape[0], -1, mu.shape[-1])
    distance = (z.unsqueeze(2) - mu.unsqueeze(1)).abs() * (-0.5 * logvar).exp().unsqueeze(1)
    if name == "gradient of scale":
        return float((0.5 * (distance**2 + 1) * _flat(slope).abs().unsqueeze(1)).max())
    return float((distance * (-0.5 * logvar).exp().unsqueeze(1)).max())


def _mmd(case: Case, draw: Draw) -> None:
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


def _mmd_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    return (vf.mmd(t["x"], t["y"], **case.settings),)


def _mmd_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    kernel = s.get("kernel", "imq")
    return (
        truth.mmd(_flat(w["x"]), _flat(w["y"]), kernel, s.get("scales"), s.get("unbiased", True)),
    )


def _tril(case: Case, draw: Draw) -> None:
    case.dims["B"] = draw.size(64)
    case.dims["D"] = min(17, draw.size())
    case.operands["mu"] = draw.operand(case, ("B", "D"))
    case.operands["tril"] = draw.operand(case, ("B", "D", "D"), "lower")
    case.operands["tril"].layout = draw.pick("dense", "first two swapped", "every second row")
    _samples(case, draw)
    if draw.chance(0.5):
        case.settings["reduction"] = draw.pick("batchmean", "sum")
    draw.differentiate(case, 2)
    case.grid = False


def _tril_call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    return vf.tril_sample_kl(t["mu"], t["tril"], **case.settings, **noise)


def _tril_truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    mu, lower, eps = w["mu"], torch.tril(w["tril"]), w["eps"]
    temperature = case.settings.get("temperature", 1.0)
    if eps.dim() == 4:
        z = mu.unsqueeze(1) + temperature * torch.einsum("tbij,tkbj->tkbi", lower, eps)
    else:
        z = mu + temperature * torch.einsum("tbij,tbj->tbi", lower, eps)
    d = 2 * lower.diagonal(dim1=-2, dim2=-1).log()
    off = torch.tril(lower, -1).square().sum((-2, -1))
    kl = 0.5 * (off + (mu**2 + truth.expm1_minus(d)).sum(-1))
    return z, truth.reduced(kl, case.settings.get("reduction", "sample"), None)


OPERATORS: dict[str, Operator] = {
    "rsample": Operator(_rsample, _rsample_call, _rsample_truth),
    "gaussian_kl": Operator(_kl, _kl_call, _kl_truth),
    "sample_kl": Operator(_sample_kl, _sample_kl_call, _sample_kl_truth),
    "nll": Operator(_nll, _nll_call, _nll_truth),
    "linear_nll": Operator(_linear, _linear_call, _linear_truth),
    "elbo_loss": Operator(_elbo, _elbo_call, _elbo_truth),
    "log_weights": Operator(_log_weights, _log_weights_call, _log_weights_truth),
    "importance_loss": Operator(_importance, _importance_call, _importance_truth),
    "monte_carlo_kl": Operator(_monte_carlo, _monte_carlo_call, _monte_carlo_truth),
    "tc_terms": Operator(_tc, _tc_call, _tc_truth),
    "mixture_log_prob": Operator(_mixture, _mixture_call, _mixture_truth),
    "mmd": Operator(_mmd, _mmd_call, _mmd_truth),
    "tril_sample_kl": Operator(_tril, _tril_call, _tril_truth),
}
# Each case has as many of its kind as of 1.
SHARES = {"nll": 4, "sample_kl": 3, "rsample": 2, "gaussian_kl": 2, "elbo_loss": 3, "linear_nll": 1}
# Made of the others, without a gradient: loops in Python.
COMPOSED = {"annealed_log_weights", "log_marginal"}
