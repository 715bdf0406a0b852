"""A target that asks for a gradient: log q(z), a hierarchical prior's sample."""

import random

import likelihood_cases
import pytest
import torch
from tolerances import assert_close64

import vaefast as vf
from vaefast.backends.reference.likelihoods import LOCATION
from vaefast.ops import _nll

REAL = [c for c in likelihood_cases.ALL if c.form in LOCATION or c.form == "gaussian_optimal"]
REDUCTIONS = ["none", "sample", "mean"]
every = pytest.mark.parametrize("case", REAL, ids=str)


def drawn(case, shape, device, dtype=torch.float64, lead=()):
    rng = random.Random(0)
    params = [p.to(dtype).to(device).requires_grad_() for p in case.params((*lead, *shape), rng)]
    x = case.target(shape, rng).to(dtype).to(device).requires_grad_()
    scalar = None if case.scalar is None else case.scalar.to(dtype).to(device).requires_grad_()
    return params, x, scalar


def test_every_likelihood_of_real_values_is_here():
    names = {c.name for c in REAL}
    assert names == {"gaussian", "laplace", "log_cosh", "student_t"}
    assert {c.form for c in REAL} >= LOCATION - {"gaussian_scalar", "laplace_scalar"}


@pytest.mark.each(3)
@every
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_against_float64(backend, case, reduction, lead, dtype):
    params, x, scalar = drawn(case, (4, 9), backend.device, dtype, lead)
    mask = torch.rand(4, 9, device=backend.device) < 0.7
    weight = torch.rand(4, device=backend.device)
    compute = torch.promote_types(dtype, torch.float32)
    for given in ({}, {"mask": mask, "weight": weight}):
        for _ in range(2):
            leaves = [*params, x] + ([] if scalar is None else [scalar])
            loss = vf.nll(tuple(params), x, case.build(scalar), reduction=reduction, **given)
            upstream = torch.rand(loss.shape, dtype=torch.float64)
            got = torch.autograd.grad(loss, leaves, upstream.to(loss))
        wide = [t.detach().cpu().double().requires_grad_() for t in leaves]
        wide_params, wide_x = wide[: len(params)], wide[len(params)]
        model = case.build(None if scalar is None else wide[-1])
        given = {k: v.cpu() for k, v in given.items()}
        with vf.backend("reference"):
            true = vf.nll(tuple(wide_params), wide_x, model, reduction=reduction, **given)
        want = torch.autograd.grad(true, wide, upstream.to(loss.dtype).double())
        for ours, truth in zip(got, want, strict=True):
            assert_close64(ours.cpu(), truth, compute, 20)


@every
def test_it_is_the_kernels(kernels, case, monkeypatch):
    """Not the reference's, in the first call or a prepared one."""

    def refuse(*args, **kwargs):
        raise AssertionError("the reference was called")

    monkeypatch.setattr(_nll.reference, "nll", refuse)
    params, x, scalar = drawn(case, (4, 9), kernels.device, torch.float32)
    for _ in range(3):
        loss = vf.nll(tuple(params), x, case.build(scalar))
        grads = torch.autograd.grad(loss, [*params, x])
        assert torch.equal(grads[-1], -grads[0])
        # Alone, and not at all.
        loss = vf.nll(tuple(p.detach() for p in params), x, case.build(scalar))
        assert torch.equal(torch.autograd.grad(loss, x)[0], grads[-1])
        loss = vf.nll(tuple(params), x.detach(), case.build(scalar))
        assert torch.equal(torch.autograd.grad(loss, params[0])[0], grads[0])


@every
def test_again_over_a_retained_graph(backend, case):
    params, x, scalar = drawn(case, (4, 9), backend.device, torch.float32)
    for reduction in ("batchmean", "sample"):
        for _ in range(2):
            loss = 3 * vf.nll(tuple(params), x, case.build(scalar), reduction=reduction).sum()
            first = [g.clone() for g in torch.autograd.grad(loss, [*params, x], retain_graph=True)]
            # What came back is the caller's.
            for g in torch.autograd.grad(loss, [*params, x], retain_graph=True):
                g.fill_(float("nan"))
            for one, two in zip(first, torch.autograd.grad(loss, [*params, x]), strict=True):
                assert torch.equal(one, two)


@pytest.mark.each(5)
@every
def test_differentiated_again_and_transforms(backend, case):
    params, x, scalar = drawn(case, (2, 3), backend.device)

    def loss(x, *p):
        return vf.nll(p, x, case.build(None if scalar is None else scalar.detach()))

    leaves = [x, *params]
    assert torch.autograd.gradcheck(loss, leaves)
    if case.name != "laplace":
        assert torch.autograd.gradgradcheck(loss, leaves)
    want = torch.autograd.grad(loss(*leaves), leaves)
    plain = [t.detach() for t in leaves]
    got = torch.func.grad(loss, tuple(range(len(leaves))))(*plain)
    torch.testing.assert_close(got, want)


@pytest.mark.each(5)
@every
def test_compiled(backend, case):
    params, x, scalar = drawn(case, (4, 9), backend.device, torch.float32)
    model = case.build(None if scalar is None else scalar.detach())

    def loss(x, *p):
        return vf.nll(p, x, model)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = [x, *params]
    got = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(loss(*leaves), leaves))


def test_a_target_of_more_digits_than_the_location(backend):
    loc = torch.randn(5, 4, 9, device=backend.device).to(torch.bfloat16).requires_grad_()
    x = torch.randn(4, 9, device=backend.device, requires_grad=True)
    got = torch.autograd.grad(vf.nll(loc, x, "gaussian"), (loc, x))
    wide = loc.detach().double().requires_grad_(), x.detach().double().requires_grad_()
    want = torch.autograd.grad(vf.nll(wide[0], wide[1], "gaussian"), wide)
    assert got[0].dtype == torch.bfloat16
    torch.testing.assert_close(got[1].double(), want[1], rtol=1e-5, atol=1e-6)
    half = x.detach().to(torch.bfloat16).requires_grad_()
    (summed,) = torch.autograd.grad(vf.nll(loc, half, "gaussian"), half)
    assert summed.dtype == torch.bfloat16


def test_other_targets_have_theirs_from_plain_pytorch(backend):
    logits = torch.randn(4, 9, device=backend.device, requires_grad=True)
    x = torch.rand(4, 9, device=backend.device, requires_grad=True)
    for _ in range(2):
        (got,) = torch.autograd.grad(vf.nll(logits, x, "bernoulli"), x)
        torch.testing.assert_close(got, -logits.detach() / 4)


def test_a_hierarchical_prior(backend):
    """log p(z1 | z2) beside z1's own way to the loss, in channels_last too."""
    for kind in (torch.contiguous_format, torch.channels_last):
        mu, logvar = (
            torch.randn(3, 4, 5, 6, device=backend.device).contiguous(memory_format=kind)
            for _ in range(2)
        )
        mu.requires_grad_()
        z = vf.rsample(mu, logvar, seed=1)
        loss = vf.nll((logvar, 0.3 * logvar), z, "gaussian") + z.square().sum()
        (got,) = torch.autograd.grad(loss, mu)
        want = (z - logvar) * torch.exp(-0.3 * logvar) / 3 + 2 * z
        torch.testing.assert_close(got, want.detach(), rtol=1e-5, atol=1e-5)
