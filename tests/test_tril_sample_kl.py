"""The full-covariance posterior against torch.distributions, the diagonal one and float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import vaefast as vf

F64 = torch.float64


def inputs(batch: int, dims: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    """mu, and L with whatever a network may put above its diagonal."""
    generator = torch.Generator().manual_seed(dims)
    mu = torch.randn(batch, dims, generator=generator, dtype=F64)
    tril = torch.randn(batch, dims, dims, generator=generator, dtype=F64)
    diagonal = tril.diagonal(dim1=-2, dim2=-1)
    diagonal.copy_(diagonal.abs() + 0.2)
    return mu.to(dtype).requires_grad_(), tril.to(dtype).requires_grad_()


@pytest.mark.parametrize("dims", [1, 7, 41])
@pytest.mark.parametrize("num_samples", [None, 3])
def test_against_distributions(dims: int, num_samples: int | None) -> None:
    mu, tril = inputs(5, dims)
    lead = () if num_samples is None else (num_samples,)
    noise = torch.randn(*lead, 5, dims, dtype=F64)
    z, kl = vf.tril_sample_kl(mu, tril, num_samples=num_samples, noise=noise)
    lower = torch.tril(tril)
    want_z = mu + torch.einsum("bij,...bj->...bi", lower, noise)
    prior = MultivariateNormal(torch.zeros(dims, dtype=F64), torch.eye(dims, dtype=F64))
    want_kl = kl_divergence(MultivariateNormal(mu, scale_tril=lower), prior)
    torch.testing.assert_close(z, want_z)
    torch.testing.assert_close(kl, want_kl)
    upstream = (torch.randn_like(z), torch.randn_like(kl))
    got = torch.autograd.grad((z, kl), (mu, tril), upstream)
    want = torch.autograd.grad((want_z, want_kl), (mu, tril), upstream)
    torch.testing.assert_close(got, want)
    assert torch.equal(got[1], torch.tril(got[1]))


def test_what_is_above_the_diagonal_is_not_used() -> None:
    mu, tril = (t.detach() for t in inputs(4, 6))
    want = vf.tril_sample_kl(mu, tril, seed=1)
    poisoned = torch.where(torch.ones(6, 6).triu(1).bool(), torch.nan, tril).requires_grad_()
    got = vf.tril_sample_kl(mu, poisoned, seed=1)
    assert all(map(torch.equal, got, want))
    (grad,) = torch.autograd.grad(got[0].sum() + got[1].sum(), poisoned)
    assert torch.isfinite(grad).all() and not grad.triu(1).any()


@pytest.mark.parametrize("num_samples", [None, 4])
def test_a_diagonal_factor_is_the_diagonal_posterior(num_samples: int | None) -> None:
    mu, std = torch.randn(5, 7, dtype=F64), torch.rand(5, 7, dtype=F64) + 0.1
    z, kl = vf.tril_sample_kl(mu, torch.diag_embed(std), num_samples=num_samples, seed=3, offset=8)
    want = vf.rsample(mu, std, param="std", num_samples=num_samples, seed=3, offset=8)
    torch.testing.assert_close(z, want)
    torch.testing.assert_close(kl, vf.gaussian_kl(mu, std, param="std", reduction="sample"))


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 1.0])
def test_kl_near_collapse(size: float) -> None:
    mu, tril = (t.detach() for t in inputs(33, 9))
    near = torch.eye(9, dtype=F64) + size * torch.tril(tril)
    mu32, tril32 = (size * mu).float(), near.float().requires_grad_()
    _, kl = vf.tril_sample_kl(mu32, tril32, seed=0)
    wide = tril32.detach().double().requires_grad_()
    _, want = vf.tril_sample_kl(mu32.double(), wide, seed=0)
    assert float(((kl.double() - want) / want).detach().abs().max()) < 2e-6
    (grad,) = torch.autograd.grad(kl.sum(), tril32)
    (expected,) = torch.autograd.grad(want.sum(), wide)
    # log L of an L that float32 rounds near 1 is exact to its last place.
    torch.testing.assert_close(grad.double(), expected, rtol=4e-6, atol=4e-6 * size)


def test_gradcheck() -> None:
    mu, tril = inputs(2, 3)
    noise = torch.randn(4, 2, 3, dtype=F64)
    check = lambda m, t: vf.tril_sample_kl(m, t, num_samples=4, noise=noise)  # noqa: E731
    assert torch.autograd.gradcheck(check, (mu, tril))
    assert torch.autograd.gradgradcheck(check, (mu, tril))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    mu, tril = inputs(5, 7, dtype)
    z, kl = vf.tril_sample_kl(mu, tril, seed=0)
    assert (z.dtype, kl.dtype) == (dtype, torch.float32)
    want = vf.tril_sample_kl(mu.detach().double(), tril.detach().double(), seed=0)[1]
    torch.testing.assert_close(kl.double(), want, rtol=1e-6, atol=0)
    grads = torch.autograd.grad(z.float().sum() + kl.sum(), (mu, tril))
    assert [g.dtype for g in grads] == [dtype, dtype]


def test_moments_reductions_and_seeds() -> None:
    mu, tril = (t.detach() for t in inputs(2, 3, torch.float32))
    z, kl = vf.tril_sample_kl(mu, tril, num_samples=40000, seed=5)
    lower = torch.tril(tril)
    for b in range(2):
        want = lower[b] @ lower[b].T
        assert float((torch.cov(z[:, b].T) - want).abs().max()) < 0.05 * float(want.abs().max())
        assert float((z[:, b].mean(0) - mu[b]).abs().max()) < 0.05
    for how, value in (("batchmean", kl.mean()), ("sum", kl.sum())):
        again, total = vf.tril_sample_kl(mu, tril, num_samples=40000, seed=5, reduction=how)
        assert torch.equal(total, value) and torch.equal(again, z)


def test_compiles_fullgraph() -> None:
    mu, tril = inputs(3, 4, torch.float32)

    def loss(mu: Tensor, tril: Tensor) -> Tensor:
        z, kl = vf.tril_sample_kl(mu, tril, num_samples=2, seed=0)
        return z.square().sum() + kl.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(mu, tril), loss(mu, tril))


def test_refusals() -> None:
    mu, tril = (t.detach() for t in inputs(3, 4))
    with pytest.raises(ValueError, match=r"must be \[B, D\] and \[B, D, D\]"):
        vf.tril_sample_kl(mu, tril[..., :3])
    with pytest.raises(TypeError, match="tril must be float64"):
        vf.tril_sample_kl(mu, tril.long())
    with pytest.raises(ValueError, match="positive diagonal"):
        vf.tril_sample_kl(mu, -tril, validate=True)
    with pytest.raises(ValueError, match="reduction must be one of"):
        vf.tril_sample_kl(mu, tril, reduction="mean")
