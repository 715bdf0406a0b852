"""`.log_prob(params, x)` of every likelihood in the registries."""

import random

import likelihood_cases
import pytest
import torch

import vaefast as vf
from vaefast import likelihoods


@pytest.mark.parametrize("case", likelihood_cases.ALL, ids=str)
def test_is_minus_the_loss(backend, case):
    rng = random.Random(0)
    scalar = None if case.scalar is None else case.scalar.to(backend.device)
    model = case.build(scalar)
    params = [p.to(backend.device).requires_grad_() for p in case.params((2, 3, 4), rng)]
    x = case.target((3, 4), rng).to(backend.device)
    got = model.log_prob(tuple(params), x)
    assert got.shape == (2, 3, 4)
    truth = case.truth(
        x.cpu(), [p.detach().cpu() for p in params] + ([] if scalar is None else [scalar.cpu()])
    )
    torch.testing.assert_close(got.detach().cpu(), -truth)
    loss = vf.nll(tuple(params), x, model, reduction="sum")
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), params), tuple(-g for g in torch.autograd.grad(loss, params))
    )


@pytest.mark.parametrize("name", list(likelihoods.registered_rows()))
def test_of_positions(backend, name):
    model = likelihoods.resolve(name)
    shapes = {
        "categorical": (3, 4, 5),
        "multinomial": (3, 7),
        "discretized_logistic_mixture": (3, 100, 2, 2),
    }
    params = torch.randn(shapes[name], device=backend.device)
    x = model.sample(params, seed=1)
    got = model.log_prob(params, x)
    torch.testing.assert_close(got, -vf.nll(params, x, name, reduction="none"))
    assert got.dim() == {"categorical": 2, "multinomial": 1}.get(name, 3)


def test_is_that_of_torch(backend):
    logits, x = torch.randn(4, 5, device=backend.device), torch.rand(4, 5, device=backend.device)
    want = torch.distributions.Bernoulli(logits=logits).log_prob(x.round())
    torch.testing.assert_close(vf.Bernoulli().log_prob(logits, x.round()), want)
    want = torch.distributions.Normal(logits, 0.5).log_prob(x)
    torch.testing.assert_close(vf.Gaussian(std=0.5).log_prob(logits, x), want)


def test_compiles():
    compiled = torch.compile(
        lambda p, x: vf.Bernoulli().log_prob(p, x), fullgraph=True, backend="aot_eager"
    )
    logits, x = torch.randn(4, 5), torch.rand(4, 5)
    torch.testing.assert_close(compiled(logits, x), vf.Bernoulli().log_prob(logits, x))
