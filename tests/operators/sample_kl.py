"""`sample_kl`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_likelihoods
import fuzz_posteriors
import fuzz_truth
import torch
from fuzz_cases import Case, Draw
from fuzz_operator import REDUCTIONS, Tensors, tensors_of
from torch import Tensor
from traced_call import D, K, P, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    shape = fuzz_posteriors.posterior(case, draw)
    fuzz_posteriors.samples(case, draw)
    fuzz_posteriors.prior(case, draw, shape, 0.15)
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
    fuzz_likelihoods.hide(case, draw)
    draw.differentiate(case, 2)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    given = tensors_of(t, "prior_mu", "prior_scale", "mask", "weight")
    return vf.sample_kl(t["mu"], t["scale"], **given, **case.settings, **noise)


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    s = case.settings
    logvar = fuzz_truth.log_variance(w["scale"], s)
    z, reduction = fuzz_posteriors.z(case, w, logvar), s.get("reduction", "sample")
    if s.get("estimator") != "monte_carlo":
        return z, fuzz_truth.reduced(
            fuzz_posteriors.kl_elements(case, w, logvar), reduction, w.get("mask")
        )
    lead, zero = 1 + (z.dim() - w["mu"].dim()), torch.zeros((), dtype=z.dtype)
    mu, latent = w["mu"], w["mu"].dim() - 1
    # z - mu: the noise itself, and not the difference, which by sigma^2 may be off by anything.
    centred = fuzz_truth.sample(torch.zeros_like(mu), logvar, w["eps"], s.get("temperature", 1.0))
    if s.get("stop_posterior"):
        shift = mu - mu.detach()
        centred = centred + (shift.unsqueeze(1) if lead == 2 else shift)
        logvar = logvar.detach()
    dims = latent + lead - 1
    log_q = fuzz_truth.log_normal(centred, zero, logvar.unsqueeze(1) if lead == 2 else logvar)
    prior_mu, prior_logvar = w.get("prior_mu"), fuzz_posteriors.prior_logvar(case, w)
    log_p = fuzz_truth.log_normal(
        z,
        zero if prior_mu is None else fuzz_truth.aligned(prior_mu, dims),
        zero if prior_logvar is None else fuzz_truth.aligned(prior_logvar, dims),
    )
    return z, fuzz_truth.reduced(fuzz_truth.summed(log_q - log_p, lead), reduction, None, lead)


SHARE = 3
TRACED = {
    "": traced(lambda m, s: vf.sample_kl(m, s, seed=3), P, P),
    "balanced": traced(
        lambda m, s, p, v: vf.sample_kl(
            m, s, seed=3, prior_mu=p, prior_scale=v, balance=0.8, free_bits=0.1
        ),
        P,
        P,
        P,
        (D,),
    ),
    "mean": traced(lambda m, s: vf.sample_kl(m, s, seed=3, reduction="mean"), P, P),
    "Monte Carlo": traced(
        lambda m, s, p: vf.sample_kl(
            m, s, seed=3, prior_mu=p, num_samples=K, estimator="monte_carlo"
        ),
        P,
        P,
        (D,),
    ),
}
SETTINGS = {
    "temperature": (lambda v, m, s: vf.sample_kl(m, s, seed=1, temperature=v), (P, P)),
    "clamp": (lambda v, m, s: vf.sample_kl(m, s, seed=1, clamp=(-v, v)), (P, P)),
    "Monte Carlo temperature": (
        lambda v, m, s: vf.sample_kl(m, s, seed=1, temperature=v, estimator="monte_carlo"), (P, P)),
}  # fmt: skip
