"""Numbers that people anneal, under torch.compile: traced, right, and as open numbers too."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import vaefast as vf

B, D = 6, 3
MU, SCALE = torch.randn(2, B, D, generator=torch.Generator().manual_seed(1)).unbind()
X = torch.rand(B, D, generator=torch.Generator().manual_seed(2))
LOG_W = torch.randn(4, B, generator=torch.Generator().manual_seed(3))
VALUES = (0.1, 0.3, 0.75)


def elbo(**settings):
    return vf.elbo_loss(MU, X, MU, SCALE, likelihood="bernoulli", **settings).loss


ANNEALED = {
    "beta": lambda v: elbo(beta=v),
    "capacity": lambda v: elbo(capacity=v),
    "free_bits": lambda v: elbo(free_bits=v),
    "free_bits of samples": lambda v: elbo(free_bits=v, free_bits_per="sample"),
    "free_bits of a KL": lambda v: vf.gaussian_kl(MU, SCALE, free_bits=v),
    "free_bits of kl": lambda v: vf.elbo_loss(
        MU, X, kl=X.sum(1), likelihood="bernoulli", free_bits=v, free_bits_per="total").loss,
    "temperature": lambda v: vf.rsample(MU, SCALE, seed=0, temperature=v),
    "temperature of sample_kl": lambda v: vf.sample_kl(MU, SCALE, seed=0, temperature=v)[0],
    "temperature of tril_sample_kl": lambda v: vf.tril_sample_kl(
        MU, torch.eye(D).expand(B, D, D), seed=0, temperature=v)[0],
    "min_std": lambda v: vf.gaussian_kl(MU, SCALE, param="softplus", min_std=v),
    "clamp": lambda v: vf.gaussian_kl(MU, SCALE, clamp=(-v, v)),
    "soft clamp": lambda v: vf.gaussian_kl(MU, SCALE, clamp=("soft", -v, v)),
    "renyi alpha": lambda v: vf.importance_loss(LOG_W, bound="renyi", alpha=v),
    "ciwae beta": lambda v: vf.importance_loss(LOG_W, bound="ciwae", beta=v),
    "imq scales": lambda v: vf.mmd(MU, SCALE, scales=[v, 1.0]),
    "rbf scales": lambda v: vf.mmd(MU, SCALE, kernel="rbf", scales=[v, 2 * v]),
    "Gaussian": lambda v: vf.nll(MU, X, vf.Gaussian(std=v)),
    "Laplace": lambda v: vf.nll(MU, X, vf.Laplace(scale=v)),
    "LogCosh": lambda v: vf.nll(MU, X, vf.LogCosh(scale=v)),
    "StudentT scale": lambda v: vf.nll(MU, X, vf.StudentT(scale=v)),
    "StudentT df": lambda v: vf.nll(MU, X, vf.StudentT(df=v)),
    "linear_nll": lambda v: vf.linear_nll(X, torch.eye(D), None, X, vf.Gaussian(std=v)),
    "TCLoss": lambda v: vf.nn.TCLoss(9, beta=v)(MU, MU, SCALE).loss,
    "dataset_size": lambda v: vf.tc_terms(MU, MU, SCALE, dataset_size=int(200 * v)).tc,
    "dataset_size of mws": lambda v: vf.tc_terms(
        MU, MU, SCALE, dataset_size=int(200 * v), method="mws").tc,
}  # fmt: skip


# What is plain PyTorch all the way: an operand from the second number on.
OPEN = {"beta", "capacity", "temperature of tril_sample_kl", "renyi alpha", "ciwae beta", "TCLoss"}


@pytest.mark.each(5)
@pytest.mark.parametrize("name", list(ANNEALED))
def test_a_compiled_call_follows_the_number(name):
    """Of one number the compiler makes a constant; from the second on it leaves it open."""
    call = ANNEALED[name]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for value in VALUES:
        torch.testing.assert_close(compiled(value), call(value), rtol=1e-5, atol=1e-5)
    if name in OPEN:
        assert counter.frame_count == 2
