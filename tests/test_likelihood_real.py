"""Continuous Bernoulli, log-cosh, Student's t and the discretised logistic against 150 digits."""

from __future__ import annotations

import itertools
import math

import exact
import mpmath as mp
import pytest
import scipy.integrate
import scipy.stats
import torch
from conftest import Target

import vaefast as vf
from vaefast.likelihoods import (
    ContinuousBernoulli,
    DiscretizedLogistic,
    Likelihood,
    LogCosh,
    StudentT,
)

DTYPES = [torch.float64, torch.float32]
FEW_DF = [0.7, 4.0, 1e7]


def continuous_bernoulli(x: mp.mpf, logit: mp.mpf) -> mp.mpf:
    return (mp.log(mp.expm1(logit) / logit) if logit else mp.mpf(0)) - x * logit


def log_cosh(x: mp.mpf, loc: mp.mpf, log_scale: mp.mpf) -> mp.mpf:
    return mp.log(mp.cosh((x - loc) * mp.exp(-log_scale))) + mp.log(mp.pi) + log_scale


def student_t(df: float) -> exact.Density:
    def density(x: mp.mpf, loc: mp.mpf, log_scale: mp.mpf) -> mp.mpf:
        v = mp.mpf(df)
        constant = mp.log(v * mp.pi) / 2 + mp.loggamma(v / 2) - mp.loggamma((v + 1) / 2)
        d = (x - loc) * mp.exp(-log_scale)
        return (v + 1) / 2 * mp.log1p(d * d / v) + log_scale + constant

    return density


T_DENSITIES = {df: student_t(df) for df in FEW_DF}


def logistic(x: mp.mpf, loc: mp.mpf, log_scale: mp.mpf) -> mp.mpf:
    """Of a level of 4 bits on [-1, 1], 15 levels apart 2/15."""
    level = mp.nint((x + 1) * mp.mpf(15) / 2)
    centre, half = level * 2 / mp.mpf(15) - 1, 1 / mp.mpf(15)
    upper, lower = ((centre + s * half - loc) * mp.exp(-log_scale) for s in (1, -1))
    above = 1 / (1 + mp.exp(-upper)) if level < 15 else mp.mpf(1)
    below = 1 / (1 + mp.exp(-lower)) if level > 0 else mp.mpf(0)
    # Where both are near 1 their complements are subtracted.
    if lower > 0 and 0 < level < 15:
        return -mp.log(1 / (1 + mp.exp(lower)) - 1 / (1 + mp.exp(upper)))
    return -mp.log(above - below)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_continuous_bernoulli_exact(backend: Target, dtype: torch.dtype) -> None:
    sizes = [1e-30, 1e-8, 1e-3, 0.3, 0.99, 1.0, 1.9, 2.1, 8.0, 40.0, 80.0]
    logits = [s * size for size in sizes for s in (1, -1)]
    points = list(itertools.product([0.0, 0.001, 0.3, 0.5, 0.9, 1.0], logits))
    exact.check(ContinuousBernoulli(), continuous_bernoulli, points, backend.device, dtype)


def test_continuous_bernoulli_at_half_and_far_out(backend: Target) -> None:
    logits = torch.tensor([[0.0, -0.0, 1e4, -1e4, 3e38]], device=backend.device).requires_grad_()
    x = torch.tensor([[0.25, 0.75, 1.0, 0.0, 1.0]], device=backend.device)
    loss = vf.nll(logits, x, "continuous_bernoulli", reduction="none")
    loss.sum().backward()
    want = torch.tensor([[0.0, 0.0, -math.log(1e4), -math.log(1e4), -math.log(3e38)]])
    torch.testing.assert_close(loss.cpu(), want)
    want = torch.tensor([[0.25, -0.25, -1e-4, 1e-4, 0.0]])
    torch.testing.assert_close(logits.grad.cpu(), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_cosh_exact(backend: Target, dtype: torch.dtype) -> None:
    points = list(itertools.product([-3.0, 0.0, 0.7], [-2.999, 0.0, 0.71, 50.0], [-6.0, 0.3, 20.0]))
    exact.check(LogCosh(), log_cosh, points, backend.device, dtype, ulps=16)


@pytest.mark.parametrize("df", FEW_DF)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_student_t_exact(backend: Target, dtype: torch.dtype, df: float) -> None:
    points = list(itertools.product([-3.0, 0.0, 0.7], [-2.999, 0.1, 1e6], [-20.0, -1.0, 0.3, 20.0]))
    exact.check(StudentT(df), T_DENSITIES[df], points, backend.device, dtype, ulps=16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_discretized_logistic_exact(backend: Target, dtype: torch.dtype) -> None:
    levels = [k * 2 / 15 - 1 for k in (0, 1, 8, 14, 15)]
    # Autograd subtracts sigmoids that are both near a half; the kernels have their difference.
    far, ulps = ([], 1e4) if backend.name == "reference" else ([30.0], 64)
    points = list(itertools.product(levels, [-2.0, -0.9, 0.06, 1.01], [-3.5, -1.0, 2.0, *far]))
    exact.check(DiscretizedLogistic(4), logistic, points, backend.device, dtype, ulps)


def test_discretized_logistic_at_extreme_scales(backend: Target) -> None:
    log_scale = torch.tensor([-1e30, -300.0, -90.0, 90.0, 300.0, 1e30], device=backend.device)
    log_scale = log_scale.expand(4, 6).clone().requires_grad_()
    loc = torch.tensor([-1.0, -0.003, 1.0, 5.0], device=backend.device)[:, None]
    loc = loc.expand(4, 6).clone().requires_grad_()
    for level in (0, 127, 255):
        x = torch.full((4, 6), level, dtype=torch.uint8, device=backend.device)
        loss = vf.nll((loc, log_scale), x, "discretized_logistic", reduction="none")
        for t in (loss, *torch.autograd.grad(loss.sum(), (loc, log_scale))):
            assert not torch.isnan(t).any()
        # A scale above the range leaves each bin its share; one below it, all to its own bin.
        if level == 127:
            torch.testing.assert_close(
                loss[:, 4].cpu(), torch.full((4,), 300 + 2 * math.log(2) - math.log(2 / 255))
            )
            assert loss[1, 0] < 1e-15


@pytest.mark.parametrize("bits", [1, 5, 8])
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0)], ids=str)
def test_discretized_logistic_mass_and_storage(
    backend: Target, bits: int, bounds: tuple[float, float]
) -> None:
    """The levels' masses sum to one, and bytes and floats of the same level cost the same."""
    low, high = bounds
    model = DiscretizedLogistic(bits, low, high)
    levels = torch.arange(2**bits, device=backend.device)
    params = tuple(
        torch.full((3, 2**bits), v, dtype=torch.float64, device=backend.device) for v in (0.2, -2.0)
    )
    scaled = (low + levels.double() / (2**bits - 1) * (high - low)).expand(3, -1)
    loss = vf.nll(params, scaled, model, reduction="none", validate=True)
    assert float(torch.exp(-loss[0]).sum()) == pytest.approx(1, abs=1e-12)
    stored = levels.to(torch.uint8).expand(3, -1)
    torch.testing.assert_close(vf.nll(params, stored, model, reduction="none"), loss)
    with pytest.raises(ValueError, match="support"):
        vf.nll(params, scaled + 0.1, model, validate=True)


@pytest.mark.parametrize(
    ("model", "params", "bounds"),
    [
        (ContinuousBernoulli(), (1.7,), (0, 1)),
        (ContinuousBernoulli(), (-9.0,), (0, 1)),
        (LogCosh(), (0.3, -0.4), (-40, 40)),
        (LogCosh(scale=2.0), (0.3,), (-90, 90)),
        (StudentT(3.0), (0.3, -0.4), (-math.inf, math.inf)),
        (StudentT(1e6, scale=0.5), (0.3,), (-10, 10)),
    ],
    ids=str,
)
def test_density_integrates_to_one(
    model: Likelihood, params: tuple[float, ...], bounds: tuple[float, float]
) -> None:
    tensors = tuple(torch.tensor([[p]], dtype=torch.float64) for p in params)

    def density(x: float) -> float:
        at = torch.tensor([[x]], dtype=torch.float64)
        return math.exp(-float(vf.nll(tensors, at, model)))

    total, _ = scipy.integrate.quad(density, *bounds, epsabs=1e-9)
    assert total == pytest.approx(1, abs=1e-6)


def test_scipy(backend: Target) -> None:
    x = torch.randn(5, 41, dtype=torch.float64, device=backend.device)
    loc, log_scale = torch.randn(2, 5, 41, dtype=torch.float64, device=backend.device)
    host = (t.cpu().numpy() for t in (x, loc, log_scale.exp()))
    a, b, c = host
    got = vf.nll((loc, log_scale), x, StudentT(2.5), reduction="none")
    want = torch.tensor(-scipy.stats.t.logpdf(a, 2.5, b, c))
    torch.testing.assert_close(got.cpu(), want, rtol=1e-12, atol=1e-12)
    # scipy's hypsecant is sech(x) / pi.
    got = vf.nll((loc, log_scale), x, "log_cosh", reduction="none")
    want = torch.tensor(-scipy.stats.hypsecant.logpdf(a, b, c))
    torch.testing.assert_close(got.cpu(), want, rtol=1e-11, atol=1e-11)
    p = torch.sigmoid(loc)
    expected = torch.distributions.ContinuousBernoulli(probs=p)
    got = vf.nll(loc, p.flip(0), "continuous_bernoulli", reduction="none")
    torch.testing.assert_close(got, -expected.log_prob(p.flip(0)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ContinuousBernoulli().mean(loc), expected.mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "params", "distribution"),
    [
        (LogCosh(), (0.3, -0.4), scipy.stats.hypsecant(0.3, math.exp(-0.4))),
        (LogCosh(scale=2.0), (0.3,), scipy.stats.hypsecant(0.3, 2.0)),
        (StudentT(1.0), (0.3, 0.5), scipy.stats.t(1.0, 0.3, math.exp(0.5))),
        (StudentT(7.0, scale=2.0), (0.3,), scipy.stats.t(7.0, 0.3, 2.0)),
    ],
    ids=lambda value: value.dist.name if hasattr(value, "dist") else str(value),
)
def test_samples_follow_the_density(
    model: Likelihood, params: tuple[float, ...], distribution: object
) -> None:
    torch.set_num_threads(1)
    tensors = tuple(torch.full((2, 20000), p) for p in params)
    drawn = model.sample(tensors if len(tensors) > 1 else tensors[0], seed=5)
    assert scipy.stats.kstest(drawn.flatten().numpy(), distribution.cdf).pvalue > 1e-3
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("logit", [-60.0, -3.0, 0.0, 1e-5, 0.7, 20.0])
def test_continuous_bernoulli_moments(logit: float) -> None:
    torch.set_num_threads(1)
    logits = torch.full((2, 20000), logit)
    drawn = ContinuousBernoulli().sample(logits, seed=5).flatten()
    assert drawn.min() >= 0 and drawn.max() <= 1
    want = float(ContinuousBernoulli().mean(logits[:, :1].double())[0])
    size = mp.mpf(float(logits[0, 0]))
    with mp.workdps(50):
        exactly = float(-1 / mp.expm1(-size) - 1 / size) if size else 0.5
    assert want == pytest.approx(exactly, rel=1e-9)
    error = float(drawn.mean() - want) / (float(drawn.std()) / math.sqrt(drawn.numel()))
    assert abs(error) < 5


@pytest.mark.parametrize(("loc", "log_scale"), [(0.1, -2.0), (-1.3, 0.0), (0.5, -90.0), (0.0, 3.0)])
def test_discretized_logistic_moments(loc: float, log_scale: float) -> None:
    torch.set_num_threads(1)
    model = DiscretizedLogistic(bits=4)
    params = tuple(torch.full((2, 20000), v) for v in (loc, log_scale))
    drawn = model.sample(params, seed=5).flatten()
    levels = torch.round((drawn + 1) * 7.5)
    torch.testing.assert_close(levels / 7.5 - 1, drawn)
    want = float(model.mean(tuple(p[:, :1].double() for p in params))[0])
    spread = max(float(drawn.std()), 1e-3) / math.sqrt(drawn.numel())
    assert abs(float(drawn.mean()) - want) < 5 * spread


def test_gradcheck(kernels: Target) -> None:
    wide = {"dtype": torch.float64, "device": kernels.device}
    loc, log_scale = (torch.randn(3, 5, **wide).requires_grad_() for _ in range(2))
    x = torch.rand(3, 5, **wide)
    for model in (LogCosh(), StudentT(3.0), DiscretizedLogistic(5, 0.0, 1.0)):
        for reduction in ("none", "batchmean"):
            assert torch.autograd.gradcheck(
                lambda *p, m=model, r=reduction: vf.nll(p, x, m, reduction=r), (loc, log_scale)
            )
        assert torch.autograd.gradgradcheck(lambda *p, m=model: vf.nll(p, x, m), (loc, log_scale))
    for model in (LogCosh(0.7), StudentT(3.0, 0.7), ContinuousBernoulli()):
        assert torch.autograd.gradcheck(lambda p, m=model: vf.nll(p, x, m), loc)
        assert torch.autograd.gradgradcheck(lambda p, m=model: vf.nll(p, x, m), loc)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: StudentT(0.0), ValueError),
        (lambda: StudentT(torch.ones((), requires_grad=True)), TypeError),
        (lambda: LogCosh(scale=-1.0), ValueError),
        (lambda: DiscretizedLogistic(bits=0), ValueError),
        (lambda: DiscretizedLogistic(bits=2.5), TypeError),
        (lambda: DiscretizedLogistic(low=1.0, high=1.0), ValueError),
    ],
)
def test_bad_settings(make: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()
