"""KL balancing: the value is the KL, the gradients those of DreamerV2's two terms."""

import itertools

import pytest
import reference64
import torch
from tolerances import assert_close64

import vaefast as vf

SHARES = [0.0, 0.3, 0.8, 1.0]
REDUCTIONS = ["none", "sample", "batchmean", "sum", "mean", "dim"]


def two_terms(balance, elements, mu, scale, prior_mu, prior_scale):
    """Per element, by stop-gradients: algorithm 2 of the paper."""
    stop = torch.Tensor.detach
    to_prior = elements(stop(mu), stop(scale), prior_mu, prior_scale)
    to_posterior = elements(mu, scale, stop(prior_mu), stop(prior_scale))
    return balance * to_prior + (1 - balance) * to_posterior


def operands(device, dtype=torch.float64, prior=(7, 5)):
    shapes = [(7, 5), (7, 5), prior, prior]
    return [(0.8 * torch.randn(s, device=device)).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("balance", SHARES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("prior", [(7, 5), (5,), (7, 1)], ids=str)
def test_gradients_are_the_two_terms(backend, balance, dtype, prior):
    leaves = operands(backend.device, dtype, prior)
    wide = [t.detach().double().cpu().requires_grad_() for t in leaves]
    compute = torch.promote_types(dtype, torch.float32)
    for reduction in REDUCTIONS:
        kl = vf.gaussian_kl(*leaves, balance=balance, reduction=reduction)
        plain = vf.gaussian_kl(*leaves, reduction=reduction)
        torch.testing.assert_close(kl, plain, rtol=1e-6, atol=0)
        truth = reference64.reduced(two_terms(balance, reference64.kl, *wide), reduction, None)
        upstream = torch.randn(kl.shape, dtype=torch.float64)
        got = torch.autograd.grad(kl, leaves, upstream.to(kl))
        want = torch.autograd.grad(truth, wide, upstream.to(kl.dtype).double())
        for ours, true in zip(got, want, strict=True):
            assert_close64(ours.cpu(), true, compute, 20)


@pytest.mark.parametrize("balance", SHARES)
def test_the_sample_keeps_its_own_gradient(backend, balance):
    leaves = operands(backend.device)
    weight = torch.randn(7, 5, dtype=torch.float64, device=backend.device)
    for retain in (True, False):
        z, kl = vf.sample_kl(
            *leaves[:2], prior_mu=leaves[2], prior_scale=leaves[3], balance=balance, seed=3
        )
        got = torch.autograd.grad((z * weight).sum() + kl.sum(), leaves, retain_graph=retain)
        own = torch.autograd.grad((vf.rsample(*leaves[:2], seed=3) * weight).sum(), leaves[:2])
        of_kl = torch.autograd.grad(two_terms(balance, reference64.kl, *leaves).sum(), leaves)
        want = [own[0] + of_kl[0], own[1] + of_kl[1], *of_kl[2:]]
        torch.testing.assert_close(list(got), want)


@pytest.mark.parametrize("operator", ["gaussian_kl", "sample_kl"])
def test_differentiated_again(backend, operator):
    leaves = operands(backend.device, prior=(5,))
    directions = [torch.randn_like(t) for t in leaves]

    def found(kl):
        first = torch.autograd.grad(kl, leaves, create_graph=True)
        along = sum((g * d).sum() for g, d in zip(first, directions, strict=True))
        return torch.autograd.grad(along, leaves)

    if operator == "gaussian_kl":
        kl = vf.gaussian_kl(*leaves, balance=0.8, reduction="sum")
    else:
        names = ("prior_mu", "prior_scale")
        prior = dict(zip(names, leaves[2:], strict=True))
        kl = vf.sample_kl(*leaves[:2], **prior, balance=0.8, reduction="sum", seed=1)[1]
    want = found(two_terms(0.8, reference64.kl, *leaves).sum())
    torch.testing.assert_close(found(kl), want)


def test_under_transforms(backend):
    leaves = operands(backend.device, prior=(5,))
    plain = [t.detach() for t in leaves]

    def ours(*t):
        return vf.gaussian_kl(*t, balance=0.8, reduction="sum")

    def theirs(*t):
        return two_terms(0.8, reference64.kl, *t).sum()

    every = (0, 1, 2, 3)
    got, want = torch.func.grad(ours, every)(*plain), torch.func.grad(theirs, every)(*plain)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.func.hessian(ours, every)(*plain), torch.func.hessian(theirs, every)(*plain)
    )
    rows = torch.func.vmap(torch.func.grad(ours, every))(*(torch.stack([t, 2 * t]) for t in plain))
    torch.testing.assert_close([r[0] for r in rows], [*got])


@pytest.mark.reference_is_slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(backend, dynamic):
    leaves = operands(backend.device, torch.float32)

    def loss(balance, *t):
        z, kl = vf.sample_kl(
            *t[:2], prior_mu=t[2], prior_scale=t[3], balance=balance, seed=2, reduction="batchmean"
        )
        return z.square().sum() + kl

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for balance in (0.8, 0.5, 0.25):
        got = torch.autograd.grad(compiled(balance, *leaves), leaves)
        torch.testing.assert_close(got, torch.autograd.grad(loss(balance, *leaves), leaves))


def test_one_side_alone(backend):
    """As when the caller detaches the other."""
    leaves = operands(backend.device)
    kl = vf.gaussian_kl(*(t.detach() for t in leaves[:2]), *leaves[2:], balance=0.8)
    want = vf.gaussian_kl(*(t.detach() for t in leaves[:2]), *leaves[2:])
    for got, whole in zip(
        torch.autograd.grad(kl, leaves[2:]), torch.autograd.grad(want, leaves[2:]), strict=True
    ):
        torch.testing.assert_close(got, 0.8 * whole)
    kl = vf.gaussian_kl(*leaves[:2], *(t.detach() for t in leaves[2:]), balance=0.8)
    want = vf.gaussian_kl(*leaves[:2], *(t.detach() for t in leaves[2:]))
    for got, whole in zip(
        torch.autograd.grad(kl, leaves[:2]), torch.autograd.grad(want, leaves[:2]), strict=True
    ):
        torch.testing.assert_close(got, 0.2 * whole)


def test_free_bits_masks_and_weights(backend):
    leaves = operands(backend.device)
    mask = torch.rand(7, 5, device=backend.device) < 0.6
    weight = torch.rand(7, dtype=torch.float64, device=backend.device)
    for per, bits in itertools.product(("dim", "sample", "total"), (0.0, 0.4)):
        settings = {"free_bits": bits, "free_bits_per": per, "mask": mask, "weight": weight}
        kl = vf.gaussian_kl(*leaves, balance=0.8, **settings)
        whole = vf.gaussian_kl(*leaves, **settings)
        torch.testing.assert_close(kl, whole)
        got, want = (torch.autograd.grad(k, leaves) for k in (kl, whole))
        torch.testing.assert_close(got[:2], tuple(0.2 * g for g in want[:2]))
        torch.testing.assert_close(got[2:], tuple(0.8 * g for g in want[2:]))


def test_the_module(backend):
    leaves = operands(backend.device)
    kl = vf.nn.GaussianKL(balance=0.8)(*leaves)
    got = torch.autograd.grad(kl, leaves)
    torch.testing.assert_close(
        got, torch.autograd.grad(vf.gaussian_kl(*leaves, balance=0.8), leaves)
    )
    assert "balance=0.8" in repr(vf.nn.GaussianKL(balance=0.8))


def test_bad_input():
    mu = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="balance needs prior_mu or prior_scale"):
        vf.gaussian_kl(mu, mu, balance=0.8)
    with pytest.raises(ValueError, match=r"balance must be in \[0, 1\], got 1.5"):
        vf.gaussian_kl(mu, mu, mu, balance=1.5)
    with pytest.raises(ValueError, match="balance must be in"):
        vf.sample_kl(mu, mu, prior_mu=mu, balance=float("nan"))
    with pytest.raises(ValueError, match="balance needs estimator='closed'"):
        vf.sample_kl(mu, mu, prior_mu=mu, balance=0.5, estimator="monte_carlo")
    with pytest.raises(TypeError, match="balance must be a number"):
        vf.gaussian_kl(mu, mu, mu, balance="0.5")
