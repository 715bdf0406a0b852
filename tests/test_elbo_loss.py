"""elbo_loss: every weight and reduction, its raw parts, and that it bounds log p(x)."""

import math

import pytest
import reference64
import torch
from torch.autograd import gradcheck, gradgradcheck

import vaefast as vf


@pytest.fixture
def batch(backend):
    """logits, x, mu, logvar in float64."""
    torch.manual_seed(7)
    shapes = [(6, 3, 5), (6, 3, 5), (6, 4), (6, 4)]
    logits, x, mu, logvar = (
        torch.randn(s, dtype=torch.float64, device=backend.device) for s in shapes
    )
    return (
        logits.requires_grad_(),
        torch.sigmoid(x),
        mu.requires_grad_(),
        logvar.requires_grad_(),
    )


def parts(logits, x, mu, logvar):
    """nll and kl per sample."""
    nll = reference64.density("bernoulli", x, [logits], None).flatten(1).sum(1)
    return nll, reference64.kl(mu, logvar).sum(1)


def reduced(loss, reduction, elements=15):
    return {
        "sample": loss,
        "batchmean": loss.mean(),
        "sum": loss.sum(),
        "mean": loss.mean() / elements,
    }[reduction]


BETAS = {
    "one": lambda device: 1.0,
    "number": lambda device: 0.3,
    "zero": lambda device: 0.0,
    "scalar": lambda device: torch.tensor(2.0, dtype=torch.float64, device=device),
    "per sample": lambda device: torch.linspace(0, 2, 6, dtype=torch.float64, device=device),
}


@pytest.mark.parametrize("beta", list(BETAS))
@pytest.mark.parametrize("capacity", [None, 3.0])
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean", "sample"])
@pytest.mark.parametrize("given", [False, True])
def test_is_its_formula(backend, batch, beta, capacity, reduction, given):
    logits, x, mu, logvar = batch
    weight = BETAS[beta](backend.device)
    nll, kl = parts(*batch)
    cost = kl if capacity is None else (kl - capacity).abs()
    want = reduced(nll + weight * cost, reduction)
    settings = {"likelihood": "bernoulli", "beta": weight, "capacity": capacity}
    if given:
        ours = vf.gaussian_kl(mu, logvar, reduction="sample")
        got = vf.elbo_loss(logits, x, kl=ours, reduction=reduction, **settings)
    else:
        got = vf.elbo_loss(logits, x, mu, logvar, reduction=reduction, **settings)
    torch.testing.assert_close(got.loss, want)
    mean = reduction != "sample"
    torch.testing.assert_close(got.nll, nll.mean() if mean else nll)
    torch.testing.assert_close(got.kl, kl.mean() if mean else kl)
    assert not got.nll.requires_grad
    assert not got.kl.requires_grad
    leaves = (logits, mu, logvar)
    for one, two in zip(
        torch.autograd.grad(got.loss.sum(), leaves, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(want.sum(), leaves, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("capacity", [None, 3.0])
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean", "sample"])
@pytest.mark.parametrize("kind", ["sample", "element", "mask", "both"])
def test_weight_and_mask(backend, batch, capacity, reduction, kind):
    """A [B] weight weighs the sample's whole loss; any other, the reconstruction's elements."""
    logits, x, mu, logvar = batch
    elements = reference64.density("bernoulli", x, [logits], None)
    mask = torch.rand(6, 3, 5, device=backend.device) < 0.6 if kind in ("mask", "both") else None
    weight = None
    if kind in ("sample", "both"):
        weight = torch.rand(6, dtype=torch.float64, device=backend.device)
    elif kind == "element":
        weight = torch.rand(3, 1, dtype=torch.float64, device=backend.device)
    nll = reference64.weighted(elements, mask, weight).flatten(1).sum(1)
    kl = reference64.kl(mu, logvar).sum(1)
    cost = kl if capacity is None else (kl - capacity).abs()
    if kind in ("sample", "both"):
        cost = cost * weight
    count = 15 if mask is None else mask.sum().double() / 6
    want = reduced(nll + cost, reduction, count)
    got = vf.elbo_loss(
        *(logits, x, mu, logvar),
        likelihood="bernoulli",
        mask=mask,
        weight=weight,
        capacity=capacity,
        reduction=reduction,
    )
    torch.testing.assert_close(got.loss, want)
    torch.testing.assert_close(got.kl, kl if reduction == "sample" else kl.mean())


@pytest.mark.parametrize("per", ["dim", "sample", "total"])
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean"])
def test_free_bits(batch, per, reduction):
    logits, x, mu, logvar = batch
    nll, kl = parts(*batch)
    cost = vf.gaussian_kl(mu, logvar, free_bits=0.9, free_bits_per=per)
    settings = {"likelihood": "bernoulli", "free_bits": 0.9, "free_bits_per": per}
    got = vf.elbo_loss(logits, x, mu, logvar, beta=2.0, reduction=reduction, **settings)
    factor = {"batchmean": 1.0, "sum": 6.0, "mean": 1 / 15}[reduction]
    torch.testing.assert_close(got.loss, (nll.mean() + 2 * cost) * factor)
    # What is logged is the KL that there is, not what it is charged.
    torch.testing.assert_close(got.kl, kl.mean())
    if per != "dim":
        given = vf.elbo_loss(logits, x, kl=kl, beta=2.0, reduction=reduction, **settings)
        torch.testing.assert_close(given.loss, got.loss)


@pytest.mark.parametrize("per", ["dim", "sample", "total"])
def test_negative_free_bits(batch, per):
    logits, x, mu, logvar = batch
    settings = {"likelihood": "bernoulli", "free_bits": -0.1, "free_bits_per": per}
    for posterior in ((mu, logvar), ()):
        kl = None if posterior else parts(*batch)[1]
        with pytest.raises(ValueError, match="free_bits must be at least 0"):
            vf.elbo_loss(logits, x, *posterior, kl=kl, **settings)


def test_learned_prior_and_posterior_settings(backend, batch):
    logits, x, mu, logvar = batch
    prior = torch.randn(2, 4, dtype=torch.float64, device=backend.device).requires_grad_()
    settings = {"clamp": (-1.0, 1.0), "param": "log_std"}
    got = vf.elbo_loss(
        *(logits, x, mu, logvar), likelihood="bernoulli", prior_mu=prior[0],
        prior_scale=prior[1], **settings,
    )  # fmt: skip
    nll, _ = parts(*batch)
    kl = reference64.kl(mu, 2 * logvar.clamp(-1, 1), prior[0], 2 * prior[1]).sum(1)
    torch.testing.assert_close(got.loss, (nll + kl).mean())
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, prior), torch.autograd.grad(kl.mean(), prior)
    )


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean", "sample"])
@pytest.mark.parametrize("kl_shape", [(6,), (2, 6)])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_several_samples(backend, batch, reduction, kl_shape, beta):
    """params [K, B, *data]: the loss is the mean over samples of both kinds."""
    _, x, _, _ = batch
    logits = torch.randn(2, 6, 3, 5, dtype=torch.float64, device=backend.device)
    kl = torch.rand(kl_shape, dtype=torch.float64, device=backend.device)
    nll = reference64.density("bernoulli", x, [logits], None).flatten(2).sum(2)
    want = reduced(nll + beta * kl, reduction)
    got = vf.elbo_loss(logits, x, kl=kl, likelihood="bernoulli", beta=beta, reduction=reduction)
    torch.testing.assert_close(got.loss, want)


def test_gradcheck(batch):
    logits, x, mu, logvar = batch
    for settings in [{}, {"beta": 0.5, "capacity": 2.0}, {"reduction": "sample"}]:

        def loss(*leaves, settings=settings):
            logits, mu, logvar = leaves
            return vf.elbo_loss(logits, x, mu, logvar, likelihood="bernoulli", **settings).loss

        assert gradcheck(loss, (logits, mu, logvar))
        assert gradgradcheck(loss, (logits, mu, logvar))


def test_optimal_std_inside_the_elbo(backend, batch):
    mean, x, mu, logvar = batch
    for reduction in ("batchmean", "sum", "mean", "sample"):
        got = vf.elbo_loss(
            *(mean, x, mu, logvar), likelihood=vf.Gaussian(std="optimal"), reduction=reduction
        )
        std = ((x - mean) ** 2).mean().sqrt()
        nll = -torch.distributions.Normal(mean, std).log_prob(x).flatten(1).sum(1)
        want = reduced(nll + reference64.kl(mu, logvar).sum(1), reduction)
        torch.testing.assert_close(got.loss, want)
        torch.testing.assert_close(
            torch.autograd.grad(got.loss.sum(), mean), torch.autograd.grad(want.sum(), mean)
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_never_above_log_p_on_a_linear_gaussian_model(backend, dtype):
    """p(z) = N(0, 1), p(x|z) = N(Wz, s^2): log p(x) is known; the exact posterior reaches it."""
    torch.manual_seed(3)
    weight, s = torch.randn(5, 2, dtype=torch.float64), 0.5
    x = torch.randn(64, 5, dtype=torch.float64)
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(5, dtype=torch.float64),
        weight @ weight.T + s**2 * torch.eye(5, dtype=torch.float64),
    )
    log_p = marginal.log_prob(x)
    precision = torch.eye(2, dtype=torch.float64) + weight.T @ weight / s**2
    covariance = torch.linalg.inv(precision)
    mu = x @ weight @ covariance / s**2
    # The best diagonal posterior: variances of the precision's diagonal.
    logvar = -precision.diagonal().log().expand(64, 2)
    slack = torch.linalg.slogdet(covariance)[1] + precision.diagonal().log().sum()

    def elbo(mu, logvar, samples=40, copies=100):
        mu, logvar, w, data = (t.to(backend.device, dtype) for t in (mu, logvar, weight, x))
        mu, logvar, data = (t.repeat(copies, 1) for t in (mu, logvar, data))
        z, kl = vf.sample_kl(mu, logvar, num_samples=samples, seed=1)
        nll = vf.nll(z @ w.T, data, vf.Gaussian(std=s), reduction="sample").mean(0)
        return -(nll + kl).view(copies, -1).mean(0).double().cpu()

    best = elbo(mu, logvar)
    # Monte Carlo error of a quadratic form in 2 dimensions over 4000 samples.
    assert (best <= log_p + 0.15).all()
    # KL(q || p(z|x)) of the best diagonal posterior is the same for every x.
    assert abs((log_p - best).mean().item() - slack.item() / 2) < 0.02
    for shift, widen in [(0.5, 0.0), (0.0, 1.0), (0.0, -1.0)]:
        assert elbo(mu + shift, logvar + widen).mean() < best.mean() - 0.01


def test_a_one_sample_batch_and_scalars_per_sample(backend):
    logits, x = torch.zeros(1, 1, device=backend.device), torch.ones(1, 1, device=backend.device)
    mu = torch.ones(1, 1, device=backend.device)
    loss, nll, kl = vf.elbo_loss(logits, x, mu, torch.zeros_like(mu), likelihood="bernoulli")
    assert loss.item() == pytest.approx(math.log(2) + 0.5)
    assert (nll.item(), kl.item()) == (pytest.approx(math.log(2)), pytest.approx(0.5))
