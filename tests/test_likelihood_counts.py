"""Poisson, negative binomial and its zero-inflated form against 50 digits and scipy."""

from __future__ import annotations

import itertools
import math

import exact
import mpmath as mp
import pytest
import scipy.stats
import torch
from conftest import Target

import vaefast as vf

DTYPES = [torch.float64, torch.float32]
COUNTS = [0.0, 1.0, 2.0, 7.0, 100.0, 1e6]
MEANS = [1e-6, 1.0, 2.9, 101.0, 1.01e6]
THETAS = [1e-4, 2.5, 3.0, 40.0, 1e4, 1e8]


def poisson(x: mp.mpf, log_rate: mp.mpf) -> mp.mpf:
    return mp.exp(log_rate) - x * log_rate + mp.loggamma(x + 1)


def poisson_rate(x: mp.mpf, rate: mp.mpf) -> mp.mpf:
    return rate - x * mp.log(rate) + mp.loggamma(x + 1)


def negative_binomial(x: mp.mpf, mu: mp.mpf, theta: mp.mpf) -> mp.mpf:
    terms = theta * mp.log(theta / (theta + mu)) + x * mp.log(mu / (theta + mu))
    return -(terms + mp.loggamma(x + theta) - mp.loggamma(theta) - mp.loggamma(x + 1))


def zero_inflated(x: mp.mpf, mu: mp.mpf, theta: mp.mpf, pi: mp.mpf) -> mp.mpf:
    n = negative_binomial(x, mu, theta)
    if x == 0:
        return mp.log(1 + mp.exp(pi)) - mp.log(mp.exp(pi) + mp.exp(-n))
    return n + mp.log(1 + mp.exp(pi))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_poisson_exact(backend: Target, dtype: torch.dtype) -> None:
    rates = [-80.0, -13.5, -0.7, 0.0, 1.1, 4.6, 9.2, 13.8, 14.1]
    points = list(itertools.product([*COUNTS, 0.3], rates))
    exact.check(vf.likelihoods.Poisson(), poisson, points, backend.device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_poisson_rate_exact(backend: Target, dtype: torch.dtype) -> None:
    points = list(itertools.product(COUNTS, [*MEANS, 1e6]))
    model = vf.likelihoods.Poisson(log=False)
    exact.check(model, poisson_rate, points, backend.device, dtype)


# Where most counts are 0 the CPU's kernel does these by themselves.
@pytest.mark.parametrize("zeros", [1, 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_negative_binomial_exact(backend: Target, dtype: torch.dtype, zeros: int) -> None:
    points = list(itertools.product([*COUNTS[1:], 0.5, *[0.0] * zeros], MEANS, THETAS))
    model = vf.likelihoods.NegativeBinomial()
    # In float64 the tails of digamma are as good as digamma needs, and here they are subtracted.
    ulps = 200 if dtype == torch.float64 else 32
    exact.check(model, negative_binomial, points, backend.device, dtype, ulps)


@pytest.mark.parametrize("zeros", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_inflated_exact(backend: Target, dtype: torch.dtype, zeros: int) -> None:
    counts, logits = [1.0, 50.0, *[0.0] * zeros], [-40.0, -3.0, 0.1, 30.0]
    points = list(itertools.product(counts, MEANS, THETAS[::2], logits))
    model = vf.likelihoods.ZeroInflatedNegativeBinomial()
    ulps = 200 if dtype == torch.float64 else 32
    exact.check(model, zero_inflated, points, backend.device, dtype, ulps)


def test_tiny_means_and_dispersions_stay_finite(backend: Target) -> None:
    """The ratio of count and mean overflows float32; its logarithm does not."""
    mu = torch.tensor([[1e-37, 1e-30, 1e4, 1e4]], device=backend.device)
    theta = torch.tensor([[1.0, 1e4, 1e-36, 1e-30]], device=backend.device)
    x = torch.tensor([[1e5, 3.0, 0.0, 1e6]], device=backend.device)
    got = vf.nll((mu, theta), x, "negative_binomial", reduction="none")
    rows = zip(x[0].tolist(), mu[0].tolist(), theta[0].tolist(), strict=True)
    with mp.workdps(60):
        want = [float(negative_binomial(*map(mp.mpf, row))) for row in rows]
    torch.testing.assert_close(
        got[0].cpu().double(), torch.tensor(want).double(), rtol=1e-6, atol=1e-30
    )


def test_scipy(backend: Target) -> None:
    x = torch.arange(60, dtype=torch.float64, device=backend.device)[None]
    theta = torch.full_like(x, 3.7)
    mu = torch.full_like(x, 11.0)
    got = vf.nll((mu, theta), x, "negative_binomial", reduction="none")
    want = -scipy.stats.nbinom.logpmf(x.cpu().numpy(), 3.7, 3.7 / (3.7 + 11.0))
    torch.testing.assert_close(got.cpu(), torch.tensor(want), rtol=1e-12, atol=1e-12)
    got = vf.nll(mu.log(), x, "poisson", reduction="none")
    want = -scipy.stats.poisson.logpmf(x.cpu().numpy(), 11.0)
    torch.testing.assert_close(got.cpu(), torch.tensor(want), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("theta", [0.4, 5.0, 1e8])
def test_mass_sums_to_one(backend: Target, theta: float) -> None:
    x = torch.arange(4000, dtype=torch.float64, device=backend.device)[None]
    params = tuple(torch.full_like(x, value) for value in (9.0, theta, -0.4))
    models = ["poisson", "negative_binomial", "zero_inflated_negative_binomial"]
    for model, given in zip(models, [params[0].log(), params[:2], params], strict=True):
        mass = torch.exp(-vf.nll(given, x, model, reduction="none")).sum()
        assert abs(float(mass) - 1) < 1e-10


def test_large_theta_is_poisson(backend: Target) -> None:
    x = torch.arange(40.0, device=backend.device)[None]
    mu = torch.full_like(x, 12.5)
    binomial = vf.nll((mu, torch.full_like(x, 1e10)), x, "negative_binomial", reduction="none")
    poisson = vf.nll(mu, x, vf.likelihoods.Poisson(log=False), reduction="none")
    torch.testing.assert_close(binomial, poisson, rtol=1e-6, atol=1e-6)


def test_dispersion_per_column(backend: Target) -> None:
    """theta [G] gives the gradient summed over the rows, and the loss of its expansion."""
    mu = torch.rand(37, 41, device=backend.device, dtype=torch.float64) * 5 + 0.1
    theta = (torch.rand(41, device=backend.device, dtype=torch.float64) + 0.5).requires_grad_()
    pi = torch.randn_like(mu)
    x = torch.poisson(mu)
    for model, extra in (("negative_binomial", ()), ("zero_inflated_negative_binomial", (pi,))):
        theta.grad = None
        loss = vf.nll((mu, theta, *extra), x, model)
        loss.backward()
        whole = theta.detach().expand_as(mu).clone().requires_grad_()
        want = vf.nll((mu, whole, *extra), x, model)
        want.backward()
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(theta.grad, whole.grad.sum(0))


@pytest.mark.parametrize("stored", [torch.uint8, torch.int32, torch.int64, torch.bfloat16], ids=str)
def test_counts_of_any_dtype(backend: Target, stored: torch.dtype) -> None:
    x = torch.randint(0, 200, (5, 41), device=backend.device)
    x = x.to(stored)
    mu, theta = torch.rand(2, 5, 41, device=backend.device) * 40 + 0.1
    got = vf.nll((mu, theta), x, "negative_binomial")
    torch.testing.assert_close(got, vf.nll((mu, theta), x.float(), "negative_binomial"))


def test_leaving_out_the_factorial(backend: Target) -> None:
    x = torch.randint(0, 30, (5, 41), device=backend.device)
    log_rate = torch.randn(5, 41, device=backend.device)
    model = vf.likelihoods.Poisson(const=False)
    want = torch.nn.functional.poisson_nll_loss(log_rate, x.float(), reduction="none")
    torch.testing.assert_close(vf.nll(log_rate, x, model, reduction="none"), want)
    model = vf.likelihoods.Poisson(log=False, const=False)
    got = vf.nll(log_rate.exp(), x, model, reduction="none")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_negative_counts(backend: Target) -> None:
    x = torch.tensor([[-1.0, 2.0]], device=backend.device)
    ones = torch.ones_like(x)
    for model, params in (("poisson", ones), ("negative_binomial", (ones, ones))):
        with pytest.raises(ValueError, match="support"):
            vf.nll(params, x, model, validate=True)
        loss = vf.nll(params, x, model, reduction="none")
        assert math.isnan(float(loss[0, 0])) and math.isfinite(float(loss[0, 1]))
    with pytest.raises(ValueError, match="support"):
        vf.nll(ones, x + 0.5, "poisson", validate=True)


@pytest.mark.each(5)
@pytest.mark.parametrize("mean", [0.02, 3.0, 9.99, 10.01, 250.0, 1e5])
@pytest.mark.parametrize("theta", [0.2, 3.0, 1e6])
def test_sample_moments(mean: float, theta: float) -> None:
    torch.set_num_threads(1)
    count = 40000
    mu = torch.full((4, count // 4), mean)
    models = {
        "poisson": (mu.log(),),
        "negative_binomial": (mu, torch.full_like(mu, theta)),
        "zero_inflated_negative_binomial": (mu, torch.full_like(mu, theta), torch.zeros_like(mu)),
    }
    for name, params in models.items():
        model = vf.likelihoods.registered()[name]()
        given = params[0] if len(params) == 1 else params
        drawn = model.sample(given, seed=3).double()
        assert torch.equal(drawn, torch.floor(drawn))
        keep = 0.5 if len(params) == 3 else 1.0
        variance = mean + (mean**2 / theta if len(params) > 1 else 0.0)
        variance = keep * (variance + (1 - keep) * mean**2)
        want = float(model.mean(given).flatten()[0])
        assert want == pytest.approx(keep * mean, rel=1e-5)
        error = abs(float(drawn.mean()) - want) / math.sqrt(variance / count)
        assert error < 5, f"{name}: mean off by {error:.1f} standard errors"


def test_samples_follow_the_mass() -> None:
    """Chi-squared of drawn counts against the mass, where the two samplers meet and elsewhere."""
    torch.set_num_threads(1)
    for mean in (0.7, 9.5, 10.5, 60.0):
        log_rate = torch.full((1, 60000), math.log(mean))
        drawn = vf.likelihoods.Poisson().sample(log_rate, seed=11)[0]
        top = int(mean + 3 * math.sqrt(mean)) + 1
        seen = torch.bincount(drawn.long().clamp(max=top), minlength=top + 1).double()
        mass = scipy.stats.poisson.pmf(range(top), mean)
        expected = torch.tensor([*mass, 1 - mass.sum()]) * drawn.numel()
        kept = expected > 5
        chi = ((seen - expected)[kept] ** 2 / expected[kept]).sum()
        assert scipy.stats.chi2.sf(float(chi), int(kept.sum()) - 1) > 1e-4


def test_gradcheck(kernels: Target) -> None:
    x = torch.tensor([[0.0, 1.0, 4.0, 30.0]], dtype=torch.float64, device=kernels.device)
    leaf = [
        (torch.rand_like(x) * 4 + 0.2).requires_grad_(),
        (torch.rand(4, dtype=torch.float64, device=kernels.device) + 0.3).requires_grad_(),
        torch.randn_like(x).requires_grad_(),
    ]
    assert torch.autograd.gradcheck(lambda p: vf.nll(p, x, "poisson"), leaf[2])
    assert torch.autograd.gradcheck(lambda *p: vf.nll(p, x, "negative_binomial"), leaf[:2])
    for reduction in ("none", "sample", "batchmean"):
        assert torch.autograd.gradcheck(
            lambda *p, r=reduction: vf.nll(p, x, "zero_inflated_negative_binomial", reduction=r),
            leaf,
        )
    assert torch.autograd.gradgradcheck(
        lambda *p: vf.nll(p, x, "zero_inflated_negative_binomial"), leaf
    )
