"""Of random cases the posteriors, priors, samples and their densities."""

from __future__ import annotations

from collections.abc import Callable

import fuzz_truth as truth
import torch
from fuzz_cases import Case, Draw
from fuzz_operator import Tensors
from torch import Tensor


def posterior(case: Case, draw: Draw) -> tuple[str, ...]:
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


def prior(case: Case, draw: Draw, shape: tuple[str | int, ...], p: float = 0.2) -> None:
    kind = case.operands["scale"].kind
    if draw.chance(p):
        case.operands["prior_mu"] = draw.operand(case, draw.broadcast(shape), grad=0.7)
    if draw.chance(p):
        case.operands["prior_scale"] = draw.operand(case, draw.broadcast(shape), kind, grad=0.7)


def samples(case: Case, draw: Draw) -> None:
    draw.noise(case)
    if draw.chance(0.2):
        case.settings["num_samples"] = case.dims["K"] = draw.pick(1, 2, 3)
    if draw.chance(0.2):
        case.settings["temperature"] = draw.pick(0.7, 0.0, 2.0)
    if case.noise == "noise":
        lead = ("K",) if "num_samples" in case.settings else ()
        shape = (*lead, *case.operands["mu"].shape)
        case.operands["noise"] = draw.operand(case, shape, grad=0.0)


def z(case: Case, w: Tensors, logvar: Tensor) -> Tensor:
    return truth.sample(w["mu"], logvar, w["eps"], case.settings.get("temperature", 1.0))


def prior_logvar(case: Case, w: Tensors) -> Tensor | None:
    scale = w.get("prior_scale")
    return None if scale is None else truth.log_variance(scale, case.settings, clamp=False)


def kl_elements(case: Case, w: Tensors, logvar: Tensor) -> Tensor:
    elements = truth.kl(w["mu"], logvar, w.get("prior_mu"), prior_logvar(case, w))
    return truth.weighted(elements, w.get("mask"), w.get("weight"))


def log_density(
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


def log_prior(case: Case, w: Tensors, z: Tensor) -> Tensor:
    zero = torch.zeros(z.shape[0], dtype=z.dtype)
    prior = prior_logvar(case, w)
    return log_density(case, z, w.get("prior_mu", zero), zero if prior is None else prior)


@torch.no_grad()
def densities_size(case: Case, w: Tensors) -> float:
    """The largest terms of log q(z|x) and of log p(z), summed over a sample without their signs."""
    prior = prior_logvar(case, w)
    zero = torch.zeros(w["z"].shape[0], dtype=torch.float64)
    pairs = (
        ("z", w["mu"], truth.log_variance(w["scale"], case.settings)),
        ("z_flow", w.get("prior_mu", zero), zero if prior is None else prior),
    )
    sizes = [log_density(case, w.get(z, w["z"]), m, v, torch.abs) for z, m, v in pairs]
    return sum(float(size.max()) for size in sizes if size.numel())
