"""Counts at a rate or mean of 0: infinite without eps, finite with it, and never NaN."""

import math

import pytest
import torch

import vaefast as vf

NB, ZINB, Poisson = vf.NegativeBinomial, vf.ZeroInflatedNegativeBinomial, vf.Poisson
# A likelihood of (mean 0, and others), by name.
MODELS = {
    "negative_binomial": (NB(), 1),
    "zero_inflated": (ZINB(), 2),
    "poisson_rate": (Poisson(log=False), 0),
    "poisson_rate, bare": (Poisson(log=False, const=False), 0),
}
REDUCTIONS = ["none", "sample", "batchmean"]


def params_of(others, mean, device, dtype):
    """A mean, and finite others behind it, as leaves of x's shape."""
    mean = torch.tensor(mean, dtype=dtype, device=device)
    rest = [torch.full_like(mean, value) for value in (2.0, -0.4)[:others]]
    return [t.requires_grad_() for t in (mean, *rest)]


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_infinite_and_no_nan(backend, name, dtype, reduction):
    model, others = MODELS[name]
    # A row each, with a plain element beside what is infinite.
    means = [[0.0, 1.0], [0.0, 1.0], [3.0, 1.0]]
    x = torch.tensor([[3.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=dtype, device=backend.device)
    leaves = params_of(others, means, backend.device, dtype)
    loss = vf.nll(tuple(leaves), x, model, reduction=reduction)
    grads = torch.autograd.grad(loss.sum(), leaves)
    for grad in grads:
        assert not grad.isnan().any()
    assert grads[0][0, 0] == -math.inf
    finite = torch.ones_like(x, dtype=torch.bool)
    finite[0, 0] = False
    assert grads[0][finite].isfinite().all()
    for grad in grads[1:]:
        assert grad.isfinite().all()
    if reduction == "none":
        assert loss[0, 0] == math.inf
        assert loss[finite].isfinite().all()
        # e^-0 for a count of 0; the inflated one's is the same: what is lost is 0 too.
        assert loss[1, 0] == 0
    # The others' derivatives are those nearby.
    near = [[1e-30, 1.0], [1e-30, 1.0], [3.0, 1.0]]
    beside = params_of(others, near, backend.device, dtype)
    close = torch.autograd.grad(vf.nll(tuple(beside), x, model, reduction=reduction).sum(), beside)
    for got, want in zip(grads, close, strict=True):
        torch.testing.assert_close(got[finite], want[finite])
    for got, want in zip(grads[1:], close[1:], strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("value", [0.0, 1e-310, 1e-300, 1e-40, 1e-20])
def test_as_the_mean_vanishes_the_loss_is_a_logarithm(backend, value):
    """-x log mu and what has a limit, also where x / mu overflows."""
    x = torch.full((1, 1), 3.0, dtype=torch.float64, device=backend.device)
    (mean, theta) = params_of(1, [[value]], backend.device, torch.float64)
    loss = vf.nll((mean, theta), x, NB())
    want = (
        math.inf
        if not value
        else -3 * math.log(value) + 3 * math.log(2.0) - math.lgamma(5) + math.lgamma(4)
    )
    if value >= 1e-300 or not value:
        torch.testing.assert_close(loss.item(), want, rtol=1e-12, atol=0)
    grads = torch.autograd.grad(loss, (mean, theta))
    assert not any(g.isnan().any() for g in grads)


@pytest.mark.parametrize("eps", [1e-8, 1e-3, 0.0])
@pytest.mark.parametrize("others", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_eps_is_added_to_the_mean(backend, eps, others, dtype):
    model = (NB, ZINB)[others - 1]
    mean = torch.rand(9, 40, device=backend.device) * 5 + 0.1
    x = torch.poisson(mean)
    mean = (mean * (torch.rand_like(mean) < (0.7 if eps else 2.0))).to(dtype).requires_grad_()
    rest = [torch.rand(9, 40, device=backend.device).add(0.3).to(dtype) for _ in range(others)]
    loss = vf.nll((mean, *rest), x, model(eps=eps))
    (got,) = torch.autograd.grad(loss, mean)
    assert loss.isfinite()
    assert got.isfinite().all()
    compute = torch.promote_types(dtype, torch.float32)
    moved = (mean.detach().to(compute) + eps).requires_grad_()
    want = vf.nll((moved, *rest), x, model())
    torch.testing.assert_close(loss, want)
    (slope,) = torch.autograd.grad(want, moved)
    torch.testing.assert_close(got, slope.to(dtype))
    # As scvi-tools writes it, but for its eps inside log theta.
    if others == 1 and dtype == torch.float64:
        mu, theta = mean.detach(), rest[0]
        total = torch.log(theta + mu + eps)
        log_prob = (
            theta * (torch.log(theta) - total)
            + x * (torch.log(mu + eps) - total)
            + torch.lgamma(x + theta)
            - torch.lgamma(theta)
            - torch.lgamma(x + 1)
        )
        torch.testing.assert_close(loss.detach(), -log_prob.sum(1).mean())


def test_eps_behind_a_linear_layer(backend):
    h = torch.randn(6, 3, device=backend.device)
    weight = torch.zeros(2, 4, 3, device=backend.device)
    biases = [torch.full((4,), value, device=backend.device) for value in (-300.0, 0.0)]
    x = torch.ones(6, 4, device=backend.device)
    loss = vf.linear_nll(h, tuple(weight), tuple(biases), x, NB(eps=1e-8))
    mean = torch.exp(biases[0]).expand(6, 4)
    torch.testing.assert_close(loss, vf.nll((mean, torch.ones_like(mean)), x, NB(eps=1e-8)))
    assert loss.isfinite()


def test_bad_eps():
    for model in (NB, ZINB):
        for wrong in (-1e-8, math.inf, math.nan):
            with pytest.raises(ValueError, match="eps must be at least 0 and finite"):
                model(eps=wrong)
        with pytest.raises(TypeError, match="eps must be a number"):
            model(eps="1e-8")
