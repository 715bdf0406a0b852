"""Likelihood objects: samples, means and densities of every one in the registry."""

import math
import random

import numpy as np
import pytest
import torch
from likelihood_cases import ALL

import vaefast as vf
from vaefast import likelihoods

pytestmark = pytest.mark.every_isa

every = pytest.mark.parametrize("case", ALL, ids=str)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@every
@pytest.mark.parametrize("device", DEVICES)
def test_samples_have_the_mean_and_follow_the_density(device, case):
    """The mean of -log p over samples is the entropy: an integral over the density itself."""
    count = 20_000
    model = case.build()
    params = [
        p.float().to(device).reshape(1, 3).expand(count, 3)
        for p in case.params((3,), random.Random(1), 0.5)
    ]
    x = model.sample(tuple(params), seed=3)
    assert x.shape == (count, 3)
    assert x.dtype == torch.float32
    assert model.support(x).all()
    error = 4.5 * x.double().std(0) / math.sqrt(count) + 1e-6
    want = model.mean(tuple(params))[0].double()
    assert ((x.double().mean(0) - want).abs() < error).all()

    nll = vf.nll(tuple(params), x, model, reduction="none").double()
    error = 4.5 * nll.std(0) / math.sqrt(count) + 1e-6
    for column in range(3):
        at = [p[:1, column].double().cpu() for p in params]
        entropy = total(case, at, lambda v: torch.where(v < 700, v, 0.0) * torch.exp(-v))
        assert abs(nll[:, column].mean().item() - entropy) < error[column]


@every
def test_samples_are_those_of_their_seed(backend, case):
    params = tuple(p.float().to(backend.device) for p in case.params((5, 7), random.Random(1)))
    model = case.build()
    x = model.sample(params, seed=3)
    assert torch.equal(x, model.sample(params, seed=3))
    assert not torch.equal(x, model.sample(params, seed=4))


@every
def test_densities_sum_or_integrate_to_one(case):
    for seed in range(3):
        params = case.params((1,), random.Random(seed), 0.7)
        assert total(case, params, lambda v: torch.exp(-v)) == pytest.approx(1, abs=1e-6)


def total(case, params, function):
    """The sum or integral over x of function(-log p(x)), at one element's parameters."""
    model = case.build()
    levels = case.levels()
    if levels is not None:
        x, weight = torch.tensor(levels, dtype=torch.float64), 1.0
    elif bool(model.support(torch.tensor(-0.5))):
        # x = middle + sinh t: the trapezoid's error is then that of a kink at t = 0, h^2 / 12.
        t = torch.linspace(-16, 16, 80_001, dtype=torch.float64)
        x, weight = float(model.mean(tuple(params))) + torch.sinh(t), torch.cosh(t) * (t[1] - t[0])
    else:
        nodes, weights = np.polynomial.legendre.leggauss(200)
        x, weight = torch.from_numpy(nodes) / 2 + 0.5, torch.from_numpy(weights) / 2
    given = tuple(p.double().reshape(1).expand(len(x)) for p in params)
    nll = vf.nll(given, x, model, reduction="none")
    return (function(nll) * weight).sum().item()


@every
def test_mean_is_differentiable(case):
    params = [p.requires_grad_() for p in case.params((2, 3), random.Random(0))]
    case.build().mean(tuple(params)).sum().backward()
    assert params[0].grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@every
def test_samples_keep_the_dtype(case, dtype):
    params = tuple(p.to(dtype) for p in case.params((4, 3), random.Random(0)))
    assert case.build().sample(params, generator=torch.Generator()).dtype == dtype
    many = case.build().sample(params, seed=[1, 2, 1, 3])
    assert many.shape == (4, 3)


def test_registry_and_names():
    found = likelihoods.registered()
    assert {"bernoulli", "gaussian", "laplace"} <= set(found)
    for name, cls in found.items():
        assert name == name.lower()
        assert isinstance(likelihoods.resolve(name), cls)
        model = cls()
        assert likelihoods.resolve(model) is model


def test_support():
    x = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1, math.nan, math.inf])
    inside = [False, True, True, True, False, False, False]
    assert vf.Bernoulli().support(x).tolist() == inside
    assert vf.Gaussian().support(x).tolist() == [True] * 5 + [False] * 2
    assert vf.Bernoulli().support(torch.zeros(2, dtype=torch.uint8)).all()


def test_optimal_gaussian_does_not_know_its_std():
    with pytest.raises(ValueError, match="sample with a number or a tensor for std"):
        vf.Gaussian(std="optimal").sample(torch.zeros(2, 3))
