"""Reconstruction likelihoods: the sizes people train at, and every likelihood registered.

A likelihood needs no line here: its default cases draw parameters from N(0, 1) and the target
from the likelihood itself, and compare with the library's plain PyTorch formula. A line in
`TEXTBOOK` names the formula that people write instead, one in `EXAMPLES` makes other inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Laplace, Normal

import vaefast as vf
from vaefast import backends, likelihoods
from vaefast.likelihoods import Likelihood

from .case import COMPILED, FUSED, Formula, Inputs, OpCase, Shape, leaf

Example = Callable[[Likelihood, Shape, torch.device], tuple[tuple[Tensor, ...], Tensor]]

IN_CACHE, OUT_OF_CACHE, GENES = (128, 784), (64, 3, 128, 128), (128, 4000)
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def bernoulli(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / x.shape[0],)


def bernoulli_uint8(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return bernoulli(logits, x.float() / 255)


def gaussian(mean: Tensor, logvar: Tensor, x: Tensor) -> tuple[Tensor]:
    density = 0.5 * (logvar + (x - mean) ** 2 * torch.exp(-logvar)) + HALF_LOG_2PI
    return (density.sum() / x.shape[0],)


def gaussian_functional(mean: Tensor, logvar: Tensor, x: Tensor) -> tuple[Tensor]:
    total = F.gaussian_nll_loss(mean, x, logvar.exp(), full=True, eps=0.0, reduction="sum")
    return (total / x.shape[0],)


def gaussian_fixed(mean: Tensor, x: Tensor) -> tuple[Tensor]:
    return ((0.5 * (x - mean) ** 2 + HALF_LOG_2PI).sum() / x.shape[0],)


def gaussian_fixed_functional(mean: Tensor, x: Tensor) -> tuple[Tensor]:
    constant = HALF_LOG_2PI * x[0].numel()
    return (0.5 * F.mse_loss(mean, x, reduction="sum") / x.shape[0] + constant,)


def laplace(loc: Tensor, log_scale: Tensor, x: Tensor) -> tuple[Tensor]:
    density = (x - loc).abs() * torch.exp(-log_scale) + log_scale + math.log(2)
    return (density.sum() / x.shape[0],)


def negative_binomial_log(mu: Tensor, theta: Tensor, x: Tensor, eps: float = 1e-8) -> Tensor:
    """`log_nb_positive` of scvi-tools."""
    log_theta_mu = torch.log(theta + mu + eps)
    return (
        theta * (torch.log(theta + eps) - log_theta_mu)
        + x * (torch.log(mu + eps) - log_theta_mu)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def negative_binomial(mu: Tensor, theta: Tensor, x: Tensor) -> tuple[Tensor]:
    return (-negative_binomial_log(mu, theta, x).sum() / x.shape[0],)


def zero_inflated(mu: Tensor, theta: Tensor, pi: Tensor, x: Tensor) -> tuple[Tensor]:
    """`log_zinb_positive` of scvi-tools."""
    eps = 1e-8
    soft = F.softplus(-pi)
    log_theta_eps = torch.log(theta + eps)
    log_theta_mu = torch.log(theta + mu + eps)
    theta_log = -pi + theta * (log_theta_eps - log_theta_mu)
    at_zero = (x < eps).float() * (F.softplus(theta_log) - soft)
    counted = (
        -soft
        + theta_log
        + x * (torch.log(mu + eps) - log_theta_mu)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )
    return (-(at_zero + (x > eps).float() * counted).sum() / x.shape[0],)


def log_prob(make: Callable[..., Distribution]) -> Formula:
    """-log p by torch.distributions, without its argument checks, which wait for a GPU."""
    return lambda *t: (-make(*t[:-1]).log_prob(t[-1]).sum() / t[-1].shape[0],)


TEXTBOOK: dict[str, Mapping[str, Formula]] = {
    "bernoulli": {
        "eager": bernoulli,
        "distributions": log_prob(lambda t: Bernoulli(logits=t, validate_args=False)),
    },
    "gaussian": {
        "eager": gaussian,
        "functional": gaussian_functional,
        "distributions": log_prob(lambda m, v: Normal(m, (0.5 * v).exp(), validate_args=False)),
    },
    "laplace": {
        "eager": laplace,
        "distributions": log_prob(lambda m, s: Laplace(m, s.exp(), validate_args=False)),
    },
    "negative_binomial": {"eager": negative_binomial},
    "zero_inflated_negative_binomial": {"eager": zero_inflated},
}
FIXED: Mapping[str, Formula] = {
    "eager": gaussian_fixed,
    "functional": gaussian_fixed_functional,
    "distributions": log_prob(lambda m: Normal(m, m.new_ones(()), validate_args=False)),
}


def drawn(
    model: Likelihood, shape: Shape, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Parameters of the likelihood's own number, and a target that it draws from them."""
    positive = model.positive_params()
    params = tuple(
        F.softplus(value) if name in positive else value
        for name in model.param_names
        for value in [torch.randn(shape, device=device)]
    )
    target = model.sample(params[0] if len(params) == 1 else params)
    if target.dtype not in model.target_dtypes:
        target = target.to(model.target_dtypes[0])
    return params, target


def pixels(
    model: Likelihood, shape: Shape, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """One parameter, and a target in [0, 1]."""
    return (torch.randn(shape, device=device),), torch.rand(shape, device=device)


def bytes_(
    model: Likelihood, shape: Shape, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """One parameter, and a uint8 image."""
    image = torch.randint(0, 256, shape, device=device, dtype=torch.uint8)
    return (torch.randn(shape, device=device),), image


EXAMPLES: dict[str, Example] = {"bernoulli": pixels}


def case(
    variant: str,
    model: Likelihood,
    shape: Shape,
    formulas: Mapping[str, Formula] | None = None,
    example: Example = drawn,
    **targets: float,
) -> OpCase:
    def fused(*tensors: Tensor) -> tuple[Tensor]:
        *params, target = tensors
        return (vf.nll(params[0] if len(params) == 1 else tuple(params), target, model),)

    def inputs(shape: Shape, device: torch.device) -> Inputs:
        params, target = example(model, shape, device)
        return Inputs(tuple(leaf(p) for p in params), (target,), (None,))

    # Outside of its own implementations a case runs on the reference backend.
    formulas = formulas or {"eager": fused}
    kind = UserCase if model.name in backends.USER_FORMS else OpCase
    return kind("nll", shape, inputs, formulas, fused, variant=variant, targets=targets)


class UserCase(OpCase):
    """A user's likelihood, which no kernel serves but its Triton implementation."""

    def implementations(self, device: torch.device) -> tuple[str, ...]:
        serving = backends.select_form(device.type, self.variant, self.op, torch.float32)
        fused = () if serving == "reference" else (FUSED + serving,)
        return (*self.formulas, COMPILED, *fused)


def named() -> list[OpCase]:
    images, fixed = (64, 3, 256, 256), vf.Gaussian(std=1.0)
    logits = TEXTBOOK["bernoulli"]
    uint8 = {"eager": bernoulli_uint8}
    nb, zinb = "negative_binomial", "zero_inflated_negative_binomial"
    return [
        case("bernoulli", vf.Bernoulli(), IN_CACHE, logits, pixels, eager=2.5),
        case("bernoulli", vf.Bernoulli(), images, logits, pixels, eager=8, compiled=2.4),
        case("bernoulli uint8", vf.Bernoulli(), images, uint8, bytes_),
        case("gaussian fixed", fixed, IN_CACHE, FIXED, pixels),
        case("gaussian fixed", fixed, images, FIXED, pixels, eager=7, compiled=3.5),
        case("gaussian", vf.Gaussian(), OUT_OF_CACHE, TEXTBOOK["gaussian"], eager=8, compiled=1.4),
        case(nb, vf.NegativeBinomial(), GENES, TEXTBOOK[nb], eager=10, compiled=6),
        case(zinb, vf.ZeroInflatedNegativeBinomial(), GENES, TEXTBOOK[zinb], eager=15, compiled=10),
    ]


def cases() -> list[OpCase]:
    special = named()
    known = {c.name for c in special}
    defaults = [
        case(name, cls(), shape, TEXTBOOK.get(name), EXAMPLES.get(name, drawn))
        for name, cls in likelihoods.registered().items()
        for shape in (IN_CACHE, OUT_OF_CACHE)
    ]
    return special + [c for c in defaults if c.name not in known]


def test_nll(measure: Callable[[], None]) -> None:
    measure()
