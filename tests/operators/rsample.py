"""`rsample`: of random cases, and for the tracers."""

from __future__ import annotations

from typing import Any

import fuzz_posteriors
import fuzz_truth
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors
from torch import Tensor
from traced_call import K, P, traced

import vaefast as vf


def make(case: Case, draw: Draw) -> None:
    fuzz_posteriors.posterior(case, draw)
    fuzz_posteriors.samples(case, draw)
    draw.differentiate(case, 1)


def call(case: Case, t: Tensors, noise: dict[str, Any]) -> tuple[Tensor, ...]:
    return (vf.rsample(t["mu"], t["scale"], **case.settings, **noise),)


def truth(case: Case, w: Tensors) -> tuple[Tensor, ...]:
    return (fuzz_posteriors.z(case, w, fuzz_truth.log_variance(w["scale"], case.settings)),)


SHARE = 2
TRACED = {
    "": traced(lambda m, s: vf.rsample(m, s, seed=3), P, P),
    "many": traced(lambda m, s: vf.rsample(m, s, seed=3, num_samples=K, clamp=(-1.0, 1.0)), P, P),
    "noise": traced(lambda m, s, e: vf.rsample(m, s, noise=e, temperature=0.7), P, P, P),
}
SETTINGS = {
    "temperature": (lambda v, m, s: vf.rsample(m, s, seed=1, temperature=v), (P, P)),
    "clamp": (lambda v, m, s: vf.rsample(m, s, seed=1, clamp=(-v, v)), (P, P)),
    "soft clamp": (lambda v, m, s: vf.rsample(m, s, seed=1, clamp=("soft", -v, v)), (P, P)),
    "min_std": (
        lambda v, m, s: vf.rsample(m, s, seed=1, param="softplus", min_std=v), (P, P)),
    "offset": (lambda v, m, s: vf.rsample(m, s, seed=1, offset=v), (P, P)),
}  # fmt: skip
