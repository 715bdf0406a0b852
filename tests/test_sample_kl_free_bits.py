"""Free bits of sample_kl: per sample by default, and what gaussian_kl gives otherwise."""

import itertools

import pytest
import torch

import vaefast as vf

PER = ("dim", "sample", "total")
REDUCTIONS = ("none", "sample", "batchmean", "sum", "mean", "dim")


def posterior(device, dtype=torch.float64):
    mu, logvar = (0.7 * torch.randn(6, 2, 3, dtype=dtype, device=device) for _ in range(2))
    return mu.requires_grad_(), logvar.requires_grad_()


@pytest.mark.parametrize("bits", [0.0, 2.0, 1e3])
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_is_what_gaussian_kl_grants(backend, bits, prior, masked):
    mu, logvar = posterior(backend.device)
    given = {"mask": mu.detach() > 0} if masked else {}
    if prior:
        given["prior_mu"] = torch.randn(3, dtype=torch.float64, device=backend.device)
    for per, reduction in itertools.product(PER, REDUCTIONS):
        settings = {"free_bits": bits, "free_bits_per": per, "reduction": reduction, **given}
        try:
            want = vf.gaussian_kl(mu, logvar, **settings)
        except ValueError as error:
            with pytest.raises(ValueError) as raised:
                vf.sample_kl(mu, logvar, **settings)
            assert str(raised.value) == str(error)
            continue
        z, kl = vf.sample_kl(mu, logvar, seed=1, **settings)
        torch.testing.assert_close(kl, want)
        torch.testing.assert_close(z, vf.rsample(mu, logvar, seed=1))
        got = torch.autograd.grad(kl.sum(), (mu, logvar))
        torch.testing.assert_close(got, torch.autograd.grad(want.sum(), (mu, logvar)))


def test_the_default_is_per_sample(backend):
    mu, logvar = posterior(backend.device, torch.float32)
    plain = vf.gaussian_kl(mu, logvar, reduction="sample")
    # Between two samples: on the bound itself the gradient is the KL's own.
    bits = float(plain.detach().sort().values[2:4].mean())
    for _ in range(2):
        z, kl = vf.sample_kl(mu, logvar, free_bits=bits, seed=1)
        torch.testing.assert_close(kl, plain.clamp(min=bits))
        # z's own gradient is no part of it.
        (grad,) = torch.autograd.grad(z.sum() + kl.sum(), mu)
        above = (plain > bits).view(-1, 1, 1)
        torch.testing.assert_close(grad, 1 + torch.where(above, mu.detach(), 0.0))


def test_what_cannot_be():
    mu = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="free_bits_per='dim' takes no reduction='sample'"):
        vf.sample_kl(mu, mu, free_bits=1.0, free_bits_per="dim")
    with pytest.raises(ValueError, match="free_bits need estimator='closed'"):
        vf.sample_kl(mu, mu, free_bits=1.0, estimator="monte_carlo")
    with pytest.raises(ValueError, match="free_bits must be at least 0, got -1"):
        vf.sample_kl(mu, mu, free_bits=-1.0)
    with pytest.raises(ValueError, match="free_bits_per must be one of"):
        vf.sample_kl(mu, mu, free_bits_per="row")


@pytest.mark.reference_is_slow
def test_one_graph_for_any_number(backend):
    mu, logvar = posterior(backend.device, torch.float32)

    def loss(m, s, bits):
        return vf.sample_kl(m, s, seed=1, free_bits=bits)[1]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for bits in (0.0, 1.0, 2.5):
        torch.testing.assert_close(compiled(mu, logvar, bits), loss(mu, logvar, bits))
