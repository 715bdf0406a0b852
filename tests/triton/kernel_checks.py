"""The Triton kernels against float64: in the interpreter on a CPU, compiled where there is a GPU.

test_interpreter.py runs this file in a process of its own, which has TRITON_INTERPRET=1 set before
anything is imported; test_gpu.py takes its tests over.
"""

import math
import os
import random

import cases
import extreme_checks
import interpreted
import posterior
import pytest
import reference64
import torch
from likelihood_cases import ALL, EVERY_FORM
from test_nll import NllCase
from tolerances import KL_RELATIVE, NORMAL, assert_close64, assert_no_worse, assert_relative

import vaefast as vf

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
every = pytest.mark.parametrize("case", ALL, ids=str)
F64, F32, F16 = torch.float64, torch.float32, torch.float16
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    interpreted.install()


@pytest.fixture
def device():
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def triton_backend(monkeypatch):
    """The backend asked for by name, and NaN wherever nobody wrote."""
    if INTERPRETED:
        # The interpreter's bfloat16 is unreliable.
        monkeypatch.setattr(cases, "DTYPES", [d for d in cases.DTYPES if d != torch.bfloat16])
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    with vf.backend("triton"):
        yield
    torch.use_deterministic_algorithms(before)


def test_every_formula_has_a_triton_implementation():
    from vaefast.backends.triton.likelihoods import FORMS

    assert set(FORMS) == set(EVERY_FORM)


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("op", ["rsample", "gaussian_kl", "sample_kl"])
def test_posterior_against_float64(device, op, number):
    posterior.PosteriorCase(op, 1000 + number).check(device)


@every
@pytest.mark.parametrize("number", range(4))
def test_nll_against_float64(device, case, number):
    NllCase(case, 1000 + number).check(device)


@every
@pytest.mark.parametrize("dtype", [F32, F16])
def test_nll_error_is_at_most_eagers(device, case, dtype):
    rng = random.Random(2)
    params = [p.to(dtype) for p in case.params((3, 41), rng)]
    if case.scalar is not None:
        params.append(case.scalar.to(dtype))
    x = case.target((3, 41), rng).to(dtype)
    wide = [p.double().requires_grad_() for p in params]
    want = case.truth(x.double(), wide).sum(1)
    plain = [p.to(device, copy=True).requires_grad_() for p in params]
    eager = case.truth(x.to(device), plain).sum(1)
    ours = [p.to(device, copy=True).requires_grad_() for p in params]
    likelihood = case.build(ours[-1] if case.scalar is not None else None)
    got = vf.nll(tuple(ours[: case.count]), x.to(device), likelihood, reduction="sample")
    assert_no_worse(got, eager, want, F32)
    for one, two, three in zip(
        torch.autograd.grad(got.sum(), ours),
        torch.autograd.grad(eager.sum(), plain),
        torch.autograd.grad(want.sum(), wide),
        strict=True,
    ):
        assert_no_worse(one, two, three, F32)


@pytest.mark.parametrize("scale", [1e-5, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("prior", [False, True])
def test_kl_is_exact_at_every_scale(device, scale, prior):
    generator = torch.Generator().manual_seed(0)
    mu, logvar = (scale * torch.randn(2, 64, 16, generator=generator)).clamp(-10, 10)
    given = [p + scale * torch.randn(64, 16, generator=generator) for p in (mu, logvar)]
    truth = reference64.kl(
        mu.double(),
        logvar.double(),
        *((given[0].double(), given[1].double()) if prior else ()),
    )
    arguments = [t.to(device) for t in (mu, logvar, *(given if prior else ()))]
    got = vf.gaussian_kl(*arguments, reduction="none").cpu()
    # Against a prior the difference of the two is what float32 can hold of it.
    assert_relative(got, truth, KL_RELATIVE if not prior else 10 * KL_RELATIVE)


def test_half_precision_over_the_whole_clamp_range(device):
    logvar = torch.linspace(-30, 20, 501).half().to(device).view(3, 167).requires_grad_()
    mu = torch.ones_like(logvar).detach()
    wide = logvar.detach().cpu().double().requires_grad_()
    kl = vf.gaussian_kl(mu, logvar, reduction="none", clamp=(-30.0, 20.0))
    truth = reference64.kl(torch.ones_like(wide), wide)
    assert_relative(kl.cpu(), truth.detach(), 2e-6)
    kl.sum().backward()
    truth.sum().backward()
    assert_close64(logvar.grad.cpu(), wide.grad, F32)


@pytest.mark.parametrize("dtype", [F64, F32, F16])
@pytest.mark.parametrize("shape", [(5, 7), (3, 41), (2, 3, 5, 7), (1, 1271), (130, 20)])
@pytest.mark.parametrize("offset", [0, 5, 2**34 + 2])
def test_noise_is_the_streams(device, dtype, shape, offset):
    """Uniforms to the last bit, normals to a few ulp; one state, and one per sample."""
    single = dtype != F64
    count = math.prod(shape)
    seeds = [7 * b - 2**62 for b in range(shape[0])]
    row = count // shape[0]
    for state, runs in (
        ([2**40 + 3, 1], [(2**40 + 3, offset + 1, count)]),
        (
            [[s, b] for b, s in enumerate(seeds)],
            [(s, offset + b, row) for b, s in enumerate(seeds)],
        ),
    ):
        given = torch.tensor(state, device=device)
        for kind in ("uniform", "normal"):
            draw = getattr(vf.random, kind)
            got = draw(shape, given, dtype=dtype, offset=offset).cpu()
            make = getattr(reference64, f"{kind}s")
            parts = [make(s, start, size, single=single) for s, start, size in runs]
            want = torch.cat([torch.from_numpy(p) for p in parts]).view(shape)
            if kind == "uniform":
                assert torch.equal(got, want.to(F32 if single else F64).to(dtype))
            else:
                rounding = 2.0**-11 if dtype == F16 else 0.0
                bound = NORMAL[F32 if single else F64] * 7 + rounding * want.abs()
                assert ((got.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("copies", [None, 3])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", [torch.uint8, F32])
@pytest.mark.parametrize("shape", [(3, 41), (2, 3, 5, 8)])
def test_binarised_targets_are_the_references(device, copies, per_sample, kind, shape):
    """The target is drawn once, also where K parameters share it; to the last bit the same."""
    rng = random.Random(0)
    x = cases.uniform(shape, rng)
    x = (x * 255).to(kind) if kind == torch.uint8 else x.to(kind)
    full = shape if copies is None else (copies, *shape)
    logits = 30 * torch.sign(cases.normal(full, rng)).float()
    seed = list(range(shape[0])) if per_sample else 5
    for mask in (None, torch.rand(shape[0], 1, *shape[2:]) < 0.7):

        def losses(on, mask=mask):
            return vf.nll(
                logits.to(on),
                x.to(on),
                vf.Bernoulli(binarize=True),
                mask=None if mask is None else mask.to(on),
                seed=seed,
                offset=3,
                reduction="none",
            ).cpu()

        with vf.backend("reference"):
            want = losses("cpu")
        got = losses(device)
        # A loss near 0 or near 30 is a target that agrees with the logit or one that does not.
        assert torch.equal(got > 15, want > 15)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("reduction", ["sample", "batchmean", "sum", "mean", "dim"])
@pytest.mark.parametrize("shape", [(2, 20_001), (700, 33), (9, 3, 3001)])
def test_sums_over_many_programs(device, reduction, shape):
    rng = random.Random(1)
    mu, logvar = cases.normal(shape, rng).float(), cases.normal(shape, rng).float()
    mask = cases.uniform((shape[0], 1, shape[-1]), rng) < 0.8 if len(shape) == 3 else None
    moved = mask if mask is None else mask.to(device)
    got = vf.gaussian_kl(mu.to(device), logvar.to(device), mask=moved, reduction=reduction)
    elements = reference64.weighted(reference64.kl(mu.double(), logvar.double()), mask, None)
    want = reference64.reduced(elements, reduction, mask)
    torch.testing.assert_close(got.cpu().double(), want, rtol=2e-6, atol=0)


def test_a_long_list_of_partial_sums(device):
    from vaefast.backends.triton import _sums

    for groups, count in [(1, 40_001), (1, 8192), (3, 5), (130, 1), (7, 2000)]:
        partial = torch.randn(groups, count, dtype=F64, device=device)
        for given in (partial, partial.t().contiguous().t()):
            out = torch.full((groups,), float("nan"), dtype=F64, device=device)
            _sums.total(given, out, 0.5)
            torch.testing.assert_close(out, 0.5 * partial.sum(1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_sample(device, bad):
    mu, logvar = torch.randn(2, 9, 20, device=device)
    clean_z, clean = vf.sample_kl(mu, logvar, seed=1)
    mu[4, 3] = bad
    z, kl = vf.sample_kl(mu, logvar, seed=1)
    others = [b for b in range(9) if b != 4]
    assert not torch.isfinite(kl[4])
    assert torch.equal(kl[others], clean[others])
    assert torch.equal(z[others], clean_z[others])
    mask = torch.ones(9, 20, dtype=torch.bool, device=device)
    mask[4, 3] = False
    leaf = mu.clone().requires_grad_()
    hidden = vf.gaussian_kl(leaf, logvar, mask=mask)
    hidden.backward()
    assert torch.isfinite(hidden)
    assert torch.isfinite(leaf.grad).all()
    assert leaf.grad[4, 3] == 0


def test_places_of_64_bits(device, monkeypatch):
    """The kernels for more than 2^31 elements, on fewer."""
    from vaefast.backends.triton import _grid

    monkeypatch.setattr(_grid, "_wide", lambda *_: True)
    for number in range(3):
        posterior.PosteriorCase("sample_kl", 2000 + number).check(device)
        NllCase(ALL[number], 2000 + number).check(device)
    state = torch.tensor([3, 2], device=device)
    want = torch.from_numpy(reference64.uniforms(3, 2, 300)).view(3, 100)
    assert torch.equal(vf.random.uniform((3, 100), state).cpu(), want.float())


@pytest.mark.parametrize("dtype", [F64, F32, F16])
def test_scale_in_place(device, dtype):
    from vaefast.backends.triton.scale import scale_

    grad = torch.randn(5, 41, device=device).to(dtype)
    for upstream in (
        torch.tensor(3.0, device=device),
        torch.randn(5, 1, device=device),
        torch.randn(1, device=device).expand(5, 41),
        torch.randn(5, 41, device=device),
    ):
        want = (grad.double() * upstream.double()).cpu()
        got = grad.clone()
        scale_(got, upstream)
        assert_close64(got.cpu(), want, F32 if dtype != F64 else F64)
    same = grad.clone()
    scale_(same, torch.tensor(1.0, device=device))
    assert torch.equal(same, grad)


@every
def test_likelihood_at_extreme_parameters(device, case):
    extreme_checks.likelihood(device, case, 64.0)


def test_kl_at_extreme_parameters(device):
    extreme_checks.kl(device)
    extreme_checks.monte_carlo_kl(device, autograd=False)
    for stop in (False, True):
        extreme_checks.sampled_kl(device, stop)


def test_pairs_at_a_tiny_variance(device):
    extreme_checks.pairs(device)
