"""gaussian_kl: against float64, exact near collapse and at the extremes, free bits, properties."""

import posterior
import pytest
import reference64
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import KL_RELATIVE, assert_close64, assert_no_worse, assert_relative
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Normal, kl_divergence

import vaefast as vf

SCALES = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 3.0, 10.0]


@pytest.mark.parametrize("number", range(100))
def test_against_float64(backend, number):
    posterior.PosteriorCase("gaussian_kl", number).check(backend.device)


def draws(scale, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * scale


@pytest.mark.parametrize("scale", SCALES)
def test_relative_error_at_every_scale(backend, scale):
    mu, logvar = draws(scale, (401, 13), 0), draws(scale, (401, 13), 1)
    want = reference64.kl(mu.double(), logvar.double())
    mu, logvar = mu.to(backend.device), logvar.to(backend.device)
    got = vf.gaussian_kl(mu, logvar, reduction="none").cpu()
    assert_relative(got, want, KL_RELATIVE)
    for reduction in ("sample", "batchmean", "mean", "dim"):
        truth = reference64.reduced(want, reduction, None)
        got = vf.gaussian_kl(mu, logvar, reduction=reduction).cpu()
        assert_relative(got, truth, KL_RELATIVE)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("base", [0.0, 1.5])
def test_relative_error_beside_a_learned_prior(backend, scale, base):
    """Posterior and prior differ by `scale`, at `base` and at twice the base."""
    prior = [base + draws(1.0, (401, 13), 2), base + draws(1.0, (401, 13), 3)]
    mu, logvar = prior[0] + draws(scale, (401, 13), 0), prior[1] + draws(scale, (401, 13), 1)
    want = reference64.kl(mu.double(), logvar.double(), prior[0].double(), prior[1].double())
    tensors = [t.to(backend.device) for t in (mu, logvar, *prior)]
    got = vf.gaussian_kl(*tensors, reduction="none").cpu()
    # e^d of a difference up to 50 has d's relative error times d: float32 holds d itself to 1e-7.
    bound = KL_RELATIVE * (1 if scale < 3 else 4)
    assert_relative(got, want, bound)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 10.0])
def test_gradients_at_every_scale(backend, scale):
    mu, logvar = draws(scale, (41, 13), 0), draws(scale, (41, 13), 1)
    leaves = [t.to(backend.device).requires_grad_() for t in (mu, logvar)]
    got = torch.autograd.grad(vf.gaussian_kl(*leaves, reduction="sum"), leaves)
    assert_relative(got[0].cpu(), mu.double(), 1e-6)
    assert_relative(got[1].cpu(), 0.5 * torch.expm1(logvar.double()), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "batchmean"])
def test_half_precision_over_the_whole_clamp_range(backend, dtype, reduction):
    """Eager float16 overflows above logvar = 11.09."""
    logvar = torch.linspace(-30, 20, 401).to(dtype)
    mu = torch.linspace(-4, 4, 401).to(dtype)
    wide = [t.double().requires_grad_() for t in (mu, logvar)]
    elements = reference64.kl(*wide)
    want = reference64.reduced(elements, reduction, None)
    leaves = [t.to(backend.device).requires_grad_() for t in (mu, logvar)]
    got = vf.gaussian_kl(*leaves, reduction=reduction)
    if reduction == "none":
        assert_relative(got.cpu(), want, KL_RELATIVE)
    assert_close64(got, want, torch.float32)
    truth = torch.autograd.grad(want.sum(), wide)
    for one, two in zip(torch.autograd.grad(got.sum(), leaves), truth, strict=True):
        assert_close64(one, two, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 2.5])
def test_error_is_at_most_eagers(backend, dtype, scale):
    mu, logvar = (draws(scale, (130, 20), seed).to(dtype) for seed in (0, 1))
    wide = [t.double().requires_grad_() for t in (mu, logvar)]
    want = reference64.kl(*wide).sum(1)
    plain = [t.to(backend.device).requires_grad_() for t in (mu, logvar)]
    eager = -0.5 * (1 + plain[1] - plain[0].square() - plain[1].exp()).sum(1)
    ours = [t.to(backend.device).requires_grad_() for t in (mu, logvar)]
    got = vf.gaussian_kl(*ours, reduction="sample")
    compute = torch.promote_types(dtype, torch.float32)
    assert_no_worse(got, eager, want, compute)
    for one, two, three in zip(
        torch.autograd.grad(got.sum(), ours),
        torch.autograd.grad(eager.sum(), plain),
        torch.autograd.grad(want.sum(), wide),
        strict=True,
    ):
        assert_no_worse(one, two, three, compute)


@pytest.mark.each(3)
@pytest.mark.parametrize("param", ["logvar", "log_std", "std", "var", "softplus"])
def test_gradcheck(backend, param):
    leaves = [
        (0.5 + torch.rand(shape, dtype=torch.float64)).to(backend.device).requires_grad_()
        for shape in [(2, 3, 2), (2, 3, 2), (3, 1), (2, 1, 2)]
    ]
    for reduction in ("none", "sample", "batchmean", "dim"):

        def kl(*tensors, reduction=reduction):
            return vf.gaussian_kl(*tensors, param=param, reduction=reduction)

        assert gradcheck(kl, leaves, check_forward_ad=reduction == "none")
        if reduction in ("none", "dim"):
            assert gradgradcheck(kl, leaves)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(values=st.lists(st.floats(-12, 12, width=32), min_size=4, max_size=4))
def test_is_never_negative_and_zero_between_equals(backend, values):
    mu, logvar, prior_mu, prior_scale = torch.tensor(values, device=backend.device).split(1)
    assert vf.gaussian_kl(mu, logvar, prior_mu, prior_scale) >= 0
    assert vf.gaussian_kl(mu, logvar) >= 0
    assert vf.gaussian_kl(mu, logvar, mu, logvar) == 0
    leaves = [t.clone().requires_grad_() for t in (mu, logvar, mu, logvar)]
    for grad in torch.autograd.grad(vf.gaussian_kl(*leaves), leaves):
        assert grad == 0


def test_is_torch_distributions(backend):
    mu, std, prior_mu, prior_std = torch.rand(4, 9, 5, dtype=torch.float64).add(0.1)
    want = kl_divergence(Normal(mu, std), Normal(prior_mu, prior_std)).sum(1)
    tensors = [t.to(backend.device) for t in (mu, std, prior_mu, prior_std)]
    got = vf.gaussian_kl(*tensors, param="std", reduction="sample")
    torch.testing.assert_close(got.cpu(), want)


PRIORS = [(1,), (5, 1, 1), (9, 11), (5, 1, 11), (5, 9, 11), (67, 1, 1, 1), (1, 5, 9, 1)]


@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["sample", "none"])
def test_gradients_of_a_prior_that_broadcasts(backend, prior, dtype, reduction):
    shape = (67, 5, 9, 11)
    leaves = [
        draws(0.7, size, number).to(dtype).to(backend.device).requires_grad_()
        for number, size in enumerate([shape, shape, prior, prior])
    ]
    upstream = draws(1.0, shape[:1] if reduction == "sample" else shape, 4).to(backend.device)

    kl = vf.gaussian_kl(*leaves, reduction=reduction)
    got = torch.autograd.grad(kl, leaves, upstream.to(kl.dtype))
    wide = [t.detach().cpu().double().requires_grad_() for t in leaves]
    kl = reference64.kl(*wide)
    kl = kl.flatten(1).sum(1) if reduction == "sample" else kl
    want = torch.autograd.grad(kl, wide, upstream.cpu().double())
    for ours, truth in zip(got, want, strict=True):
        # Some terms of a sum over many elements are larger than the sum.
        assert_close64(ours.cpu(), truth, dtype if dtype == torch.float64 else torch.float32, 10)


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_a_priors_gradient_does_not_depend_on_the_threads(prior):
    if "native" not in vf.available_backends():
        pytest.skip("torch's own sums, the reference's, do not promise it")
    shape = (67, 5, 9, 11)
    sizes = enumerate([shape, shape, prior, prior])
    leaves = [draws(0.7, size, number).requires_grad_() for number, size in sizes]

    def gradients(threads):
        torch.set_num_threads(threads)
        return torch.autograd.grad(vf.gaussian_kl(*leaves), leaves)

    for one, two in zip(gradients(1), gradients(2), strict=True):
        assert torch.equal(one, two)


def test_a_detached_prior_gets_no_gradient(backend):
    mu, logvar, prior_mu, prior_scale = (
        torch.randn(3, 5, device=backend.device, requires_grad=True) for _ in range(4)
    )
    vf.gaussian_kl(mu, logvar, prior_mu.detach(), prior_scale.detach()).backward()
    assert prior_mu.grad is None
    assert mu.grad is not None
    vf.gaussian_kl(mu.detach(), logvar.detach(), prior_mu, prior_scale).backward()
    want = 0.2 * reference64.kl(mu, logvar, prior_mu, prior_scale).sum() * 5 / 3
    torch.testing.assert_close(prior_scale.grad, torch.autograd.grad(want, prior_scale)[0])


BITS = {
    "dim": lambda e, bits: e.mean(0).clamp(min=bits).sum(),
    "sample": lambda e, bits: e.flatten(1).sum(1).clamp(min=bits).mean(),
    "total": lambda e, bits: e.flatten(1).sum(1).mean().clamp(min=bits),
}


@pytest.mark.parametrize("per", list(BITS))
@pytest.mark.parametrize("bits", [0.3, 0.9, 4.0, 1e3])
@pytest.mark.parametrize("shape", [(6, 5), (6, 2, 3)])
def test_free_bits(backend, per, bits, shape):
    mu, logvar = (
        torch.randn(shape, dtype=torch.float64, device=backend.device, requires_grad=True)
        for _ in range(2)
    )
    want = BITS[per](reference64.kl(mu, logvar), bits)
    got = vf.gaussian_kl(mu, logvar, free_bits=bits, free_bits_per=per)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got, mu), torch.autograd.grad(want, mu), rtol=1e-9, atol=1e-12
    )
    width = mu[0].numel()
    for reduction, factor in [("sum", 6.0), ("mean", 1.0 / width)]:
        other = vf.gaussian_kl(mu, logvar, free_bits=bits, free_bits_per=per, reduction=reduction)
        torch.testing.assert_close(other, want * factor)


def test_free_bits_keep_the_reduction_that_they_can(backend):
    mu, logvar = torch.randn(2, 6, 5, dtype=torch.float64, device=backend.device)
    elements = reference64.kl(mu, logvar)
    got = vf.gaussian_kl(mu, logvar, free_bits=0.8, free_bits_per="dim", reduction="dim")
    torch.testing.assert_close(got, elements.mean(0).clamp(min=0.8))
    got = vf.gaussian_kl(mu, logvar, free_bits=4.0, free_bits_per="sample", reduction="sample")
    torch.testing.assert_close(got, elements.sum(1).clamp(min=4.0))


def test_a_mask_hides_what_is_not_finite(backend):
    mu, logvar = torch.randn(2, 4, 5, device=backend.device)
    mask = torch.rand(4, 5, device=backend.device) < 0.5
    bad = [t.masked_fill(~mask, float("nan")).requires_grad_() for t in (mu, logvar)]
    good = [t.masked_fill(~mask, 0.0).requires_grad_() for t in (mu, logvar)]
    for reduction in ["none", "sample", "batchmean", "sum", "mean", "dim"]:
        got = vf.gaussian_kl(*bad, mask=mask, reduction=reduction)
        want = vf.gaussian_kl(*good, mask=mask, reduction=reduction)
        assert torch.equal(got, want)
        for one, two in zip(
            torch.autograd.grad(got.sum(), bad),
            torch.autograd.grad(want.sum(), good),
            strict=True,
        ):
            assert torch.equal(one, torch.where(mask, two, 0.0))
