"""Walks are of the model's own prior: its centre and its standard deviations."""

import math

import pytest
import torch
from torch.func import jacrev, vmap

from vaefast.train import models

STEPS = torch.linspace(-3, 3, 7)


def build(name):
    torch.manual_seed(0)
    model = models.build(name, shape=(1, 4, 3), latent=3, likelihood="gaussian", width=16)
    with torch.no_grad():
        # As training would: no prior is N(0, 1).
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.double().eval()


# A mixture is no image of N(0, I).
@pytest.mark.parametrize("name", [n for n in models.registered() if n != "vamp"])
def test_units_that_are_normal_give_the_prior(name):
    model = build(name)
    units = torch.randn(50, model.latent, dtype=torch.float64)
    z, slopes = model.from_units(units), vmap(jacrev(model.from_units))(units)
    normal = -0.5 * (units.square().sum(1) + model.latent * math.log(2 * math.pi))
    given = model.log_prior(z) + torch.linalg.slogdet(slopes).logabsdet
    torch.testing.assert_close(given, normal)


@torch.no_grad()
def test_of_a_mixture_they_are_its_mean_and_deviations():
    model = build("vamp")
    assert model.components()[0].var(0).min() > 1e-3
    z = model.prior(200_000, seed=1)
    centre = model.from_units(torch.zeros(3, dtype=torch.float64))
    assert ((centre - z.mean(0)) / z.std(0)).abs().max() < 6 / len(z) ** 0.5
    width = model.from_units(torch.ones(3, dtype=torch.float64)) - centre
    torch.testing.assert_close(width, z.std(0), atol=0, rtol=0.01)


@pytest.mark.parametrize("name", models.registered())
@torch.no_grad()
def test_a_walk_moves_one_dimension_through_the_centre(name):
    model = build(name)
    last = model.latent - 1
    z = model.walk([last, 0], STEPS)
    assert z.shape == (2, 7, model.latent) and z.dtype == torch.float64
    assert torch.equal(z[0, 3], z[1, 3])
    for row, dimension in zip(z, (last, 0), strict=True):
        assert row[:, dimension].diff().gt(0).all()
    # The lower layer's dimensions come first: a walk along one leaves all others at the centre.
    assert (z[1, :, 1:] == z[1, 3, 1:]).all()
    if name == "hierarchical":
        assert z[0, 3, 0] != 0
        assert z[0, :, 0].diff().abs().min() > 0
