"""Where a tanh is saturated its derivative is small, and as right in its own size as elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import pytest
import torch
from conftest import Target
from torch import Tensor

import vaefast as vf
from vaefast.backends.reference._exact import soft_clamp, tanh

F32, F64 = torch.float32, torch.float64
# From the middle to where float32 ends, and how far it is to float64's end.
SATURATIONS = [0.0, 1e-3, 0.1, 0.49, 0.5, 0.51, 0.9, 1.5, 3.0, 5.0, 7.0, 8.5, 9.5, 12.0, 20.0, 33.0]
# Enough for the distance to a bound.
DIGITS = 350
BEYOND = {F32: [], F64: [50.0, 100.0, 170.0]}
REAL = [(-5.0, 5.0), (-10.0, 0.0), (0.0, 7.0)]
POSITIVE = [(0.125, 3.0), (0.0, 2.0)]
CASES = [(p, b) for p in ("logvar", "log_std", "softplus") for b in REAL]
CASES += [(p, b) for p in ("std", "var") for b in POSITIVE]
every = pytest.mark.parametrize(("param", "bounds"), CASES, ids=str)
both = pytest.mark.parametrize("dtype", [F32, F64], ids=str)
LOGVAR: dict[str, Callable[[mp.mpf], mp.mpf]] = {
    "logvar": lambda s: s,
    "log_std": lambda s: 2 * s,
    "std": lambda s: 2 * mp.log(s),
    "var": mp.log,
    "softplus": lambda s: 2 * mp.log(mp.log1p(mp.exp(s))),
}
# d log sigma^2 / ds.
LOGVAR_SLOPE: dict[str, Callable[[mp.mpf], mp.mpf]] = {
    "logvar": lambda s: mp.mpf(1),
    "log_std": lambda s: mp.mpf(2),
    "std": lambda s: 2 / s,
    "var": lambda s: 1 / s,
    "softplus": lambda s: 2 / (1 + mp.exp(-s)) / mp.log1p(mp.exp(s)),
}


def points(bounds: tuple[float, float], dtype: torch.dtype) -> Tensor:
    low, high = bounds
    u = torch.tensor([s * v for v in SATURATIONS + BEYOND[dtype] for s in (1, -1)], dtype=F64)
    return ((high + low) / 2 + (high - low) / 2 * u).to(dtype)


def bounded(s: mp.mpf, bounds: tuple[float, float]) -> tuple[mp.mpf, mp.mpf]:
    """m + h tanh((s - m) / h) and its derivative."""
    low, high = map(mp.mpf, bounds)
    u = (2 * s - (high + low)) / (high - low)
    return (high + low) / 2 + (high - low) / 2 * mp.tanh(u), mp.sech(u) ** 2


def derivatives(s: mp.mpf, param: str, bounds: tuple[float, float]) -> list[mp.mpf]:
    """In s, of the KL to N(0, 1) and of sigma."""
    value, slope = bounded(s, bounds)
    logvar, by = LOGVAR[param](value), LOGVAR_SLOPE[param](value) * slope
    return [mp.expm1(logvar) * by / 2, mp.exp(logvar / 2) * by / 2]


def check(name: str, got: Tensor, s: Tensor, truth: Callable[[mp.mpf], mp.mpf], ulps: int) -> None:
    """Each to `ulps` of itself, and what a rounding of s, in the size of the bounds, does to it."""
    eps = torch.finfo(s.dtype).eps
    reach = 2 * eps * (1 + float(s[:2].abs().max()))
    for value, at in zip(got.tolist(), s.tolist(), strict=True):
        want = truth(mp.mpf(at))
        step = 2 * eps * abs(at) + reach
        moved = max(abs(truth(mp.mpf(at) + d) - want) for d in (-step, step))
        allowed = float(ulps * eps * abs(want) + moved) + torch.finfo(s.dtype).tiny
        assert abs(value - float(want)) <= allowed, (name, at, value, float(want), allowed)


def check_posterior(
    device: str, param: str, bounds: tuple[float, float], dtype: torch.dtype, ulps: int = 8
) -> None:
    s = points(bounds, dtype)
    scale = s.to(device, copy=True).requires_grad_()
    mu, ones = torch.zeros_like(scale), torch.ones_like(scale)
    clamp = ("soft", *bounds)
    kl = vf.gaussian_kl(mu, scale, param=param, clamp=clamp, reduction="sum")
    z = vf.rsample(mu, scale, param=param, clamp=clamp, noise=ones)
    got = [torch.autograd.grad(y.sum(), scale)[0].cpu() for y in (kl, z)]
    with mp.workdps(DIGITS):
        for i, name in enumerate(("kl", "sigma")):
            check(name, got[i], s, lambda x, i=i: derivatives(x, param, bounds)[i], ulps)


def check_mixture(device: str, dtype: torch.dtype, ulps: int = 8) -> None:
    """The coefficients by which a channel leans on others: their gradient is that of the channel's
    mean times the other channel and the derivative of tanh."""
    one = [s * v for v in SATURATIONS + BEYOND[dtype] for s in (1, -1)]
    k = torch.tensor(one, dtype=dtype)
    model = vf.DiscretizedLogisticMixture(3, 1)
    packed = torch.zeros(len(one), 10, 1, dtype=dtype)
    packed[:, 1:, 0] = torch.tensor([0.1, 0.2, 0.0, -0.3, -0.1, 0.0, 0.2, 0.3, 0.0], dtype=dtype)
    packed[:, [3, 6, 9], 0] = k[:, None]
    packed = packed.to(device).requires_grad_()
    levels = torch.tensor([200, 20, 90], dtype=torch.uint8, device=device)
    x = levels.expand(len(one), 3)[..., None].contiguous()
    loss = vf.nll(packed, x, model, reduction="sum")
    grad = torch.autograd.grad(loss, packed)[0].cpu().double()[:, :, 0]
    pixel = levels.cpu().double() / 127.5 - 1
    with mp.workdps(DIGITS):
        slope = torch.tensor([float(mp.sech(v) ** 2) for v in k.tolist()], dtype=F64)
    for place, mean, leans_on in ((3, 4, 0), (6, 7, 0), (9, 7, 1)):
        want = grad[:, mean] * pixel[leans_on] * slope
        error = (grad[:, place] - want).abs()
        assert (error <= ulps * torch.finfo(dtype).eps * want.abs()).all(), (place, error / want)


@every
@both
def test_posterior(
    backend: Target, param: str, bounds: tuple[float, float], dtype: torch.dtype
) -> None:
    check_posterior(backend.device, param, bounds, dtype)


@both
def test_mixture(backend: Target, dtype: torch.dtype) -> None:
    check_mixture(backend.device, dtype)


@both
@pytest.mark.parametrize("bounds", [*REAL, *POSITIVE], ids=str)
def test_second_derivative_of_the_soft_clamp(
    bounds: tuple[float, float], dtype: torch.dtype
) -> None:
    s = points(bounds, dtype).requires_grad_()
    first = torch.autograd.grad(soft_clamp(s, *bounds).sum(), s, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), s)[0]
    half = (bounds[1] - bounds[0]) / 2

    def truth(x: mp.mpf) -> mp.mpf:
        u = (2 * x - sum(bounds)) / (2 * half)
        return -2 * mp.tanh(u) * mp.sech(u) ** 2 / half

    with mp.workdps(DIGITS):
        check("second", second, s.detach(), truth, 8)


@both
def test_tanh_of_the_reference(dtype: torch.dtype) -> None:
    s = points((-1.0, 1.0), dtype).requires_grad_()
    value = tanh(s)
    first = torch.autograd.grad(value.sum(), s, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), s)[0]
    with mp.workdps(DIGITS):
        check("value", value.detach(), s.detach(), mp.tanh, 4)
        check("first", first.detach(), s.detach(), lambda x: mp.sech(x) ** 2, 8)
        check("second", second, s.detach(), lambda x: -2 * mp.tanh(x) * mp.sech(x) ** 2, 8)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30, -1e30])
@both
def test_far_off(backend: Target, value: float, dtype: torch.dtype) -> None:
    """On the bound itself, with a derivative of 0, and no NaN beside the branch not taken."""
    scale = torch.full((3,), value, dtype=dtype, device=backend.device, requires_grad=True)
    mu = torch.zeros_like(scale)
    kl = vf.gaussian_kl(mu, scale, clamp=("soft", -4.0, 2.0), reduction="none")
    bound = torch.full_like(scale, 2.0 if value > 0 else -4.0)
    torch.testing.assert_close(kl, vf.gaussian_kl(mu, bound, reduction="none"))
    assert torch.equal(torch.autograd.grad(kl.sum(), scale)[0], torch.zeros_like(scale))


def test_nan_stays(backend: Target) -> None:
    scale = torch.tensor([float("nan"), 1.0], device=backend.device, requires_grad=True)
    kl = vf.gaussian_kl(torch.zeros_like(scale), scale, clamp="soft", reduction="none")
    (grad,) = torch.autograd.grad(kl.sum(), scale)
    assert kl.isnan().tolist() == grad.isnan().tolist() == [True, False]
