"""rsample: values and gradients against float64, its arguments, its derivatives."""

import posterior
import pytest
import reference64
import torch
from torch.autograd import gradcheck, gradgradcheck

import vaefast as vf


@pytest.mark.parametrize("number", range(60))
def test_against_float64(backend, number):
    posterior.PosteriorCase("rsample", number).check(backend.device)


@pytest.mark.each(7)
@pytest.mark.parametrize("param", ["logvar", "log_std", "std", "var", "softplus"])
@pytest.mark.parametrize("num_samples", [None, 3])
def test_gradcheck(backend, param, num_samples):
    mu = torch.randn(3, 5, dtype=torch.float64, device=backend.device, requires_grad=True)
    scale = (0.5 + torch.rand_like(mu)).detach().requires_grad_()

    def z(mu, scale):
        return vf.rsample(mu, scale, param=param, num_samples=num_samples, seed=5)

    assert gradcheck(z, (mu, scale), check_forward_ad=True)
    assert gradgradcheck(z, (mu, scale))


@pytest.mark.parametrize("num_samples", [None, 2])
def test_backward_has_the_forwards_noise(backend, num_samples):
    """dz/dsigma is eps, and eps is what z was made of: also where no seed is given."""
    mu = torch.randn(41, 7, device=backend.device, requires_grad=True)
    std = (0.5 + torch.rand(41, 7, device=backend.device)).requires_grad_()
    z = vf.rsample(mu, std, param="std", num_samples=num_samples)
    upstream = torch.randn_like(z)
    (got,) = torch.autograd.grad(z, std, upstream)
    eps = (z - mu).detach() / std.detach()
    want = upstream * eps
    torch.testing.assert_close(
        got, want if num_samples is None else want.sum(0), rtol=1e-4, atol=1e-5
    )


def test_samples_are_those_of_single_calls_by_their_number(backend):
    mu = torch.zeros(5, 7, dtype=torch.float64, device=backend.device)
    z = vf.rsample(mu, mu, num_samples=4, seed=11)
    want = reference64.noise((5, 7), 11, num_samples=4, single=False)
    torch.testing.assert_close(z.cpu(), want)
    assert torch.equal(z[0], vf.rsample(mu, mu, seed=11))
    assert torch.equal(z[:2], vf.rsample(mu, mu, num_samples=2, seed=11))


@pytest.mark.parametrize("num_samples", [None, 3])
def test_two_ranks_draw_the_whole_batch(backend, num_samples):
    for shape in [(6, 8), (6, 7), (2, 5), (4, 3, 3)]:
        mu, logvar = torch.randn(2, *shape, device=backend.device)
        half = shape[0] // 2
        whole = vf.rsample(mu, logvar, num_samples=num_samples, seed=3)
        parts = [
            vf.rsample(m, s, num_samples=num_samples, seed=3, offset=rank * half * mu[0].numel())
            for rank, (m, s) in enumerate(zip(mu.split(half), logvar.split(half), strict=True))
        ]
        torch.testing.assert_close(torch.cat(parts, -len(shape)), whole, rtol=1e-6, atol=1e-6)


def test_a_sample_does_not_depend_on_what_follows_it(backend):
    mu, logvar = torch.randn(2, 9, 41, device=backend.device)
    whole = vf.rsample(mu, logvar, seed=3)
    assert torch.equal(vf.rsample(mu[:4], logvar[:4], seed=3), whole[:4])


def test_one_seed_per_sample_is_that_sample_alone(backend):
    mu, logvar = torch.randn(2, 4, 13, device=backend.device)
    whole = vf.rsample(mu, logvar, num_samples=2, seed=[7, 8, 7, -9])
    for b, seed in enumerate([7, 8, 7, -9]):
        alone = vf.rsample(mu[b : b + 1], logvar[b : b + 1], num_samples=2, seed=seed)
        torch.testing.assert_close(whole[:, b : b + 1], alone, rtol=1e-6, atol=1e-6)
    same = vf.rsample(mu[:1].expand(4, 13), logvar[:1].expand(4, 13), seed=[7, 8, 7, 9])
    assert torch.equal(same[0], same[2])
    assert not torch.equal(same[0], same[1])


def test_default_generator_and_generators(backend):
    mu = torch.zeros(3, 5, device=backend.device)
    torch.manual_seed(4)
    first, second = vf.rsample(mu, mu), vf.rsample(mu, mu)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(vf.rsample(mu, mu), first)

    before = torch.get_rng_state()
    drawn = [vf.rsample(mu, mu, generator=torch.Generator().manual_seed(6)) for _ in range(2)]
    assert torch.equal(*drawn)
    many = vf.rsample(mu, mu, generator=[torch.Generator().manual_seed(g) for g in (6, 7, 6)])
    assert torch.equal(many[0], many[2])
    torch.testing.assert_close(many[0], drawn[0][0])
    assert torch.equal(torch.get_rng_state(), before)


def test_zero_temperature_is_the_mean(backend):
    mu, logvar = torch.randn(2, 5, 7, device=backend.device)
    assert torch.equal(vf.rsample(mu, logvar, temperature=0.0), mu)


def test_huge_scales_do_not_overflow_early(backend):
    """sigma = e^(logvar / 2) is finite in float16 where e^logvar is not."""
    mu = torch.zeros(3, 5, dtype=torch.float16, device=backend.device)
    for logvar in (-30.0, 15.0, 20.0):
        z = vf.rsample(mu, torch.full_like(mu, logvar), noise=torch.ones_like(mu))
        want = torch.full((3, 5), logvar / 2, dtype=torch.float64).exp().half()
        assert torch.equal(z.cpu(), want)


def test_injected_noise_gets_its_gradient(backend):
    mu, logvar = torch.randn(2, 3, 5, device=backend.device)
    noise = torch.randn(3, 5, device=backend.device, requires_grad=True)
    vf.rsample(mu, logvar, noise=noise).sum().backward()
    torch.testing.assert_close(noise.grad, torch.exp(0.5 * logvar))
