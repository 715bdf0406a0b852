"""sample_kl: values and gradients against float64, and that it is rsample and gaussian_kl."""

import posterior
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import vaefast as vf


@pytest.mark.parametrize("number", range(100))
def test_against_float64(backend, number):
    posterior.PosteriorCase("sample_kl", number).check(backend.device)


@pytest.mark.each(7)
@pytest.mark.parametrize("prior", [(), ("mu",), ("scale",), ("mu", "scale")])
@pytest.mark.parametrize(
    ("param", "clamp"),
    [("logvar", "soft"), ("log_std", None), ("std", None), ("var", None), ("softplus", (-9, 9))],
)
def test_gradcheck(backend, prior, param, clamp):
    def leaf(*shape):
        return (0.5 + torch.rand(*shape, dtype=torch.float64)).to(backend.device).requires_grad_()

    leaves = [leaf(3, 4), leaf(3, 4), *(leaf(4) for _ in prior)]

    def both(mu, scale, *given):
        keys = {f"prior_{name}": value for name, value in zip(prior, given, strict=True)}
        return vf.sample_kl(mu, scale, **keys, param=param, clamp=clamp, seed=5, reduction="none")

    assert gradcheck(both, leaves, check_forward_ad=len(prior) == 2)
    if len(prior) == 2:
        assert gradgradcheck(both, leaves)


def test_is_rsample_and_gaussian_kl(backend):
    mu, logvar = torch.randn(2, 130, 20, device=backend.device)
    settings = {"param": "softplus", "min_std": 0.01, "clamp": (-2.0, 2.0)}
    for reduction in ["none", "sample", "batchmean", "sum", "mean", "dim"]:
        z, kl = vf.sample_kl(mu, logvar, reduction=reduction, seed=2, **settings)
        assert torch.equal(z, vf.rsample(mu, logvar, seed=2, **settings))
        assert torch.equal(kl, vf.gaussian_kl(mu, logvar, reduction=reduction, **settings))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("part", ["z", "kl", "both"])
def test_backward_over_a_retained_graph_is_the_same_again(backend, dtype, part):
    mu = torch.randn(5, 41, device=backend.device).to(dtype).requires_grad_()
    logvar = torch.randn(5, 41, device=backend.device).to(dtype).requires_grad_()
    z, kl = vf.sample_kl(mu, logvar)
    outputs = {"z": [z], "kl": [kl], "both": [z, kl]}[part]
    upstream = [torch.randn_like(o) for o in outputs]

    def backward(retain):
        given = [u.clone() for u in upstream]
        return torch.autograd.grad(outputs, (mu, logvar), given, retain_graph=retain)

    first = backward(True)
    kept = [g.clone() for g in first]
    for g in first:
        # What came back is the caller's: editing it must not reach into the graph.
        g.fill_(float("nan"))
    for retain in (True, False):
        for one, two in zip(kept, backward(retain), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("upstream", ["expanded", "dense", "transposed", "float64"])
def test_upstream_gradients_of_any_layout(backend, upstream):
    mu, logvar = (torch.randn(6, 9, device=backend.device, requires_grad=True) for _ in range(2))
    z = vf.rsample(mu, logvar, seed=1)
    eps = ((z - mu) / torch.exp(0.5 * logvar)).detach()
    if upstream == "expanded":
        grads, factor = torch.autograd.grad(z.sum() * 3, (mu, logvar)), torch.full_like(eps, 3.0)
    else:
        factor = torch.randn(9, 6, device=backend.device).t()
        factor = factor.contiguous() if upstream == "dense" else factor
        loss = (z.double() * factor).sum() if upstream == "float64" else (z * factor).sum()
        grads = torch.autograd.grad(loss, (mu, logvar))
    torch.testing.assert_close(grads[0], factor)
    want = (factor * 0.5 * torch.exp(0.5 * logvar) * eps).detach()
    torch.testing.assert_close(grads[1], want, rtol=1e-5, atol=1e-5)


def test_mu_and_scale_may_be_one_tensor_or_depend_on_each_other(backend):
    leaf = torch.randn(4, 7, dtype=torch.float64, device=backend.device, requires_grad=True)

    def twice(x):
        z, kl = vf.sample_kl(x, 0.5 * x, seed=3)
        return z.square().sum() + kl.sum()

    assert gradcheck(twice, (leaf,))
    assert gradgradcheck(twice, (leaf,))
    chunked = torch.randn(4, 14, dtype=torch.float64, device=backend.device, requires_grad=True)
    assert gradcheck(lambda h: vf.sample_kl(*h.chunk(2, 1), seed=3), (chunked,))
    assert gradcheck(lambda x: vf.sample_kl(x, x, seed=3), (leaf,))


def test_create_graph_leaves_a_graph_that_is_right(backend):
    mu, logvar = (
        torch.randn(3, 5, dtype=torch.float64, device=backend.device, requires_grad=True)
        for _ in range(2)
    )
    kl = vf.sample_kl(mu, logvar)[1].sum()
    first = torch.autograd.grad(kl, (mu, logvar), create_graph=True)
    torch.testing.assert_close(first[0], mu)
    second = torch.autograd.grad(first[1].sum(), logvar)[0]
    torch.testing.assert_close(second, 0.5 * logvar.exp())


def test_only_what_needs_a_gradient_gets_one(backend):
    mu, logvar = torch.randn(2, 3, 5, device=backend.device)
    assert not vf.sample_kl(mu, logvar)[0].requires_grad
    mu.requires_grad_()
    with torch.no_grad():
        assert not vf.sample_kl(mu, logvar)[1].requires_grad
    prior = torch.zeros(5, device=backend.device, requires_grad=True)
    _, kl = vf.sample_kl(mu, logvar, prior_mu=prior.detach())
    kl.sum().backward()
    assert logvar.grad is None
    assert prior.grad is None
    torch.testing.assert_close(mu.grad, mu.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outlier", [-2000.0, 88.0, 2000.0, float("nan")])
def test_an_outlier_changes_no_other_bit(backend, outlier, dtype):
    mu, logvar = (torch.randn(3, 300, dtype=dtype) for _ in range(2))
    upstream = torch.randn(3, 300, dtype=dtype)
    found = []
    for value in (0.5, outlier):
        logvar[1, 140] = value
        pair = mu.clone().requires_grad_(), logvar.clone().requires_grad_()
        z, kl = vf.sample_kl(*pair, seed=1)
        grads = torch.autograd.grad((z, kl.sum()), pair, (upstream, torch.ones((), dtype=dtype)))
        found.append([z.detach(), *grads, kl.detach().unsqueeze(1).expand(3, 300)])
    others = torch.ones(3, 300, dtype=torch.bool)
    others[1, 140] = False
    for plain, beside in zip(*[f[:3] for f in found], strict=True):
        assert torch.equal(plain[others], beside[others])
    assert torch.equal(found[0][3][[0, 2]], found[1][3][[0, 2]])
