"""`elbo_loss`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_likelihoods
import fuzz_posteriors
import fuzz_truth
import torch
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors, tensors_of
from torch import Tensor
from traced_call import P, X, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    rows = draw.chance(0.15)
    lead, shape = (
        fuzz_likelihoods.rows(case, draw) if rows else fuzz_likelihoods.elementwise(case, draw)
    )
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
        fuzz_posteriors.prior(case, draw, ("B", "L"), 0.15)
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
    fuzz_likelihoods.sparse(case, draw)
    fuzz_likelihoods.hide(case, draw)
    draw.differentiate(case, 1)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    names = ("mu", "scale", "kl", "prior_mu", "prior_scale", "mask", "weight", "beta")
    out = vf.elbo_loss(
        fuzz_likelihoods.params(case, t),
        t["x"],
        likelihood=fuzz_likelihoods.build(case, t),
        **tensors_of(t, *names),
        **fuzz_likelihoods.plain(case),
    )
    return tuple(out)


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    assert case.model is not None
    mask, weight = w.get("mask"), w.get("weight")
    elements, lead = fuzz_likelihoods.elements_of(
        case, w, [w[f"p{i}"] for i in range(case.model[2])]
    )
    elements = fuzz_truth.weighted(elements, mask, weight, lead)
    data = fuzz_truth.by_sample(elements, lead)
    bits, per = s.get("free_bits", 0.0), s.get("free_bits_per", "dim")
    reduction = s.get("reduction", "batchmean")
    batch = data.shape[-1]
    parts = None
    if "kl" in w:
        raw = w["kl"]
    else:
        logvar = fuzz_truth.log_variance(w["scale"], s)
        parts = fuzz_truth.kl(
            w["mu"], logvar, w.get("prior_mu"), fuzz_posteriors.prior_logvar(case, w)
        )
        raw = fuzz_truth.by_sample(parts)

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
            whole = fuzz_truth.free_bits(parts, bits, "dim", "batchmean", None)
    if s.get("capacity") is not None:
        cost = (cost - s["capacity"]).abs()
    per_sample = weight is not None and weight.shape[1:] == w["x"].shape[1:2]
    lead_shape = data.shape[1:]

    def spread(v: Tensor) -> Tensor:
        return fuzz_truth.aligned(v, len(lead_shape))

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
            ones = fuzz_truth.weighted(torch.ones_like(elements), mask, None, lead)
            copies = elements.shape[1] if lead == 2 else 1
            kept = ones.flatten(1).sum(1) / copies
            loss = loss * batch / kept.clamp(min=1)
            loss = torch.where(kept > 0, loss, 0.0)
    return loss, mean(data).detach(), mean(raw).detach()


SHARE = 3
TRACED = {
    "": traced(
        lambda p, m, s, x: vf.elbo_loss(p, x.sigmoid(), m, s, likelihood="bernoulli"),
        ("B", X),
        P,
        P,
        ("B", X),
        leaves=3,
    ),
    "parts": traced(
        lambda p, k, x: vf.elbo_loss(
            p, x, kl=k.square(), likelihood="gaussian", beta=0.5, capacity=1.0, reduction="mean"
        ),
        ("B", X),
        ("B",),
        ("B", X),
        leaves=2,
    ),
}
SETTINGS = {
    "beta": (
        lambda v, p, m, s: vf.elbo_loss(
            p, torch.ones_like(p), m, s, likelihood="bernoulli", beta=v).loss, (("B", X), P, P)),
    "capacity": (
        lambda v, p, m, s: vf.elbo_loss(
            p, torch.ones_like(p), m, s, likelihood="bernoulli", capacity=v).loss,
        (("B", X), P, P)),
    "free_bits": (
        lambda v, p, m, s: vf.elbo_loss(
            p, torch.ones_like(p), m, s, likelihood="bernoulli", free_bits=v).loss,
        (("B", X), P, P)),
    "free_bits of samples": (
        lambda v, p, m, s: vf.elbo_loss(
            p, torch.ones_like(p), m, s, likelihood="bernoulli", free_bits=v,
            free_bits_per="sample").loss, (("B", X), P, P)),
    "free_bits of kl": (
        lambda v, p, k: vf.elbo_loss(
            p, torch.ones_like(p), kl=k.square(), likelihood="bernoulli", free_bits=v,
            free_bits_per="total").loss, (("B", X), ("B",))),
    "clamp": (
        lambda v, p, m, s: vf.elbo_loss(
            p, torch.ones_like(p), m, s, likelihood="bernoulli", clamp=(-v, v)).loss,
        (("B", X), P, P)),
}  # fmt: skip
