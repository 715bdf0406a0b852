"""A parameter in half precision gets its gradient in one rounding: what it is a sum of, over the
elements that the parameter broadcasts to or its uses, is added in the precision of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import Target
from torch import Tensor

import vaefast as vf
from vaefast.distributions import FusedNormal

WIDE = torch.float64
HALVES = (torch.bfloat16, torch.float16)
ROWS = 64


def monte_carlo_kl(one: Tensor, rest: dict[str, Tensor]) -> Tensor:
    z = rest["z"]
    return vf.monte_carlo_kl(z, rest["mu"], 0 * z, z_flow=z, prior=(one, 0 * one), reduction="sum")


def nll(one: Tensor, rest: dict[str, Tensor]) -> Tensor:
    return vf.nll((one, 0 * rest["mu"]), rest["z"].float(), "gaussian", reduction="sum")


def fused_normal(one: Tensor, rest: dict[str, Tensor]) -> Tensor:
    return FusedNormal(one, torch.ones_like(one)).log_prob(rest["z"]).sum()


def fused_normal_of_vectors(one: Tensor, rest: dict[str, Tensor]) -> Tensor:
    own = torch.distributions.Independent(FusedNormal(one, torch.ones_like(one)), 1)
    return own.log_prob(rest["z"]).sum()


def fused_normals_kl(one: Tensor, rest: dict[str, Tensor]) -> Tensor:
    own = FusedNormal(one, torch.ones_like(one))
    other = FusedNormal(rest["z"], torch.ones_like(rest["z"]))
    return torch.distributions.kl_divergence(own, other).sum()


def scale(one: Tensor, rest: dict[str, Tensor]) -> Tensor:
    return vf.gaussian_kl(rest["mu"], one, reduction="sum")


def prior(one: Tensor, rest: dict[str, Tensor]) -> Tensor:
    return vf.gaussian_kl(rest["mu"], 0 * rest["mu"], one, reduction="sum")


CALLS = [
    monte_carlo_kl,
    nll,
    fused_normal,
    fused_normal_of_vectors,
    fused_normals_kl,
    scale,
    prior,
]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_what_broadcasts(
    backend: Target, call: Callable[[Tensor, dict[str, Tensor]], Tensor], dtype: torch.dtype
) -> None:
    """Its terms cancel but for a hundredth."""
    g = torch.Generator().manual_seed(3)
    draws = torch.randn(ROWS, 2, generator=g)
    draws -= draws.mean(0)
    rest = {"z": (0.13 + draws).to(dtype), "mu": (0.13 - draws).to(dtype)}
    one = torch.full((2,), 0.125, dtype=dtype)
    wide = one.to(WIDE).requires_grad_()
    exact = call(wide, {n: t.to(WIDE) for n, t in rest.items()})
    (want,) = torch.autograd.grad(exact, wide)
    leaf = one.to(backend.device, copy=True).requires_grad_()
    loss = call(leaf, {n: t.to(backend.device) for n, t in rest.items()})
    (got,) = torch.autograd.grad(loss, leaf)
    assert got.dtype == dtype
    # Beside the one rounding, that of sums in float32.
    allowed = torch.finfo(dtype).eps * want.abs() + 1e-6 * ROWS
    assert ((got.cpu().double() - want).abs() <= allowed).all(), (got, want)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_factors_diagonal(backend: Target, dtype: torch.dtype) -> None:
    """Sample and KL kl_grad it in opposite directions: what is left is 0.01 of either."""
    ones = torch.ones(1, 4, dtype=dtype)
    tril = (1.25 * torch.eye(4, dtype=dtype))[None]
    noise = torch.linspace(0.5, 1.5, 4)[None].to(dtype)

    def gradient(device: str, own: torch.dtype) -> Tensor:
        leaf = tril.to(device, own, copy=True).requires_grad_()
        z, kl = vf.tril_sample_kl(0 * ones.to(device, own), leaf, noise=noise.to(device, own))
        kl_grad = 8.0 * (tril.double() - 1 / tril.double()).diagonal(dim1=-2, dim2=-1)
        upstream = (-kl_grad / noise.double() * 1.01).to(dtype).to(device, own)
        return torch.autograd.grad((z, kl), leaf, (upstream, torch.full_like(kl, 8.0)))[0]

    want = gradient("cpu", WIDE)
    got = gradient(backend.device, dtype).cpu().double()
    allowed = torch.finfo(dtype).eps * want.abs() + 1e-5
    assert ((got - want).abs() <= allowed).all(), (got, want)
