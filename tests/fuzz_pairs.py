"""Of random cases the sums over pairs of points."""

from __future__ import annotations

import fuzz_truth as truth
import torch
from fuzz_cases import Case
from fuzz_operator import Tensors
from torch import Tensor


def flat(t: Tensor, lead: int = 1) -> Tensor:
    """`[CALLS, N, D]`, all latent dimensions in one."""
    return t.reshape(*t.shape[: lead + 1], t.shape[lead + 1 :].numel())


@torch.no_grad()
def pair_log_density(case: Case, w: Tensors) -> float:
    """The largest sum of the terms of log N(z_i; mu_j, sigma_j^2), each taken without its sign."""
    logvar = truth.log_variance(w["scale"], case.settings)
    mu = flat(w["mu"])
    z = w["z"].reshape(w["z"].shape[0], -1, mu.shape[-1]) if mu.numel() else w["z"]
    if not z.numel() or not mu.numel():
        return 0.0
    pairs = truth.log_normal(z.unsqueeze(2), mu.unsqueeze(1), flat(logvar).unsqueeze(1))
    return float(pairs.abs().sum(-1).max())


def pair_gradient(case: Case, w: Tensors, name: str) -> float:
    """The largest derivative of log N(z_i; mu_j, sigma_j^2)'s terms in one number of `name`
    ("gradient of mu"), each taken without its sign: where they cancel, no more is known."""
    scale = w["scale"].detach().requires_grad_()
    logvar = truth.log_variance(scale, case.settings)
    (slope,) = torch.autograd.grad(logvar.sum(), scale)
    mu, logvar = flat(w["mu"].detach()), flat(logvar.detach())
    if not mu.numel() or not w["z"].numel():
        return 0.0
    z = w["z"].detach().reshape(w["z"].shape[0], -1, mu.shape[-1])
    distance = (z.unsqueeze(2) - mu.unsqueeze(1)).abs() * (-0.5 * logvar).exp().unsqueeze(1)
    if name == "gradient of scale":
        return float((0.5 * (distance**2 + 1) * flat(slope).abs().unsqueeze(1)).max())
    return float((distance * (-0.5 * logvar).exp().unsqueeze(1)).max())
