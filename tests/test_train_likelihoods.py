"""Every likelihood that `vaefast train` takes trains on data of its kind, whatever its settings."""

import pytest
import torch

from vaefast import likelihoods
from vaefast.train import InputError, models, objectives
from vaefast.train.data import check_target
from vaefast.train.models.head import (
    Head,
    fitted_settings,
    input_for,
    likelihood_names,
    likelihood_settings,
)
from vaefast.train.objectives import Step, held_out_elbo

SHAPE = {"discretized_logistic_mixture": (3, 6, 5), "multinomial": (12,)}
SETTINGS = {
    "bernoulli": [{"logits": False}, {"binarize": True}],
    "gaussian": [{"std": 0.5}, {"std": "optimal"}, {"scale_per": "element"}, {"const": False}],
    "poisson": [{"log": False}],
    "student_t": [{"df": 3.0, "scale": 0.5}],
    "discretized_logistic": [{"bits": 4}],
    "discretized_logistic_mixture": [{"mixtures": 3, "bits": 5}],
    "categorical": [{"classes": 100}],
}


def cases():
    for name in likelihood_names():
        yield name, {}
        for settings in SETTINGS.get(name, []):
            yield name, settings
        if "scale_per" in likelihood_settings(name):
            yield from ((name, {"scale_per": per}) for per in ("all", "column", "element"))


def data(name, settings, shape, count=160):
    """Samples of the likelihood itself, whose location follows from one number per sample."""
    generator = torch.Generator().manual_seed(3)
    code = torch.randn(count, 1, generator=generator)
    column = torch.randn(1, torch.Size(shape).numel(), generator=generator)
    location = (code * column).view(count, *shape)
    likelihood = likelihoods.resolve(name)
    if name == "categorical":
        return (4 * torch.sigmoid(location)).round()
    if name == "multinomial":
        return likelihood.sample(2 * location, total=20, seed=1)
    if name == "discretized_logistic_mixture":
        levels = 2 ** settings.get("bits", 8) - 1
        return (levels * torch.sigmoid(2 * location)).round().to(torch.uint8)
    if name in ("continuous_bernoulli", "discretized_logistic"):
        return torch.sigmoid(location)
    if name in ("poisson", "negative_binomial", "zero_inflated_negative_binomial"):
        return likelihoods.resolve("poisson").sample((1 + 2 * location.clamp(-2, 2),), seed=1)
    if name == "bernoulli":
        return likelihood.sample(3 * location, seed=1)
    # In units of their own, far from 0.
    return 500 + 100 * (location + 0.2 * torch.randn(location.shape, generator=generator))


@pytest.mark.each(3)
@pytest.mark.parametrize(("name", "settings"), list(cases()), ids=str)
def test_the_held_out_loss_falls(name, settings):
    shape = SHAPE.get(name, (1, 4, 3))
    x = data(name, settings, shape)
    check_target(x, name, fitted_settings(name, settings, float(x.min()), float(x.max())))
    settings = fitted_settings(name, settings, float(x.min()), float(x.max()))
    torch.manual_seed(0)
    model = models.build(
        shape=shape,
        latent=2,
        width=32,
        likelihood=name,
        likelihood_settings=settings,
        input=input_for(name, settings),
        scale=float(x.float().std()),
    )
    train, held_out = x[:120], x[120:]
    model.begin(train)
    before = float(held_out_elbo(model, held_out).loss)
    adam, objective = torch.optim.Adam(model.parameters(), lr=3e-3), objectives.build()
    for step in range(80):
        adam.zero_grad()
        objective(model, train, Step(seed=step)).loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        adam.step()
    after = float(held_out_elbo(model, held_out).loss)
    assert after < before - 0.02 * abs(before)
    assert model.reconstruct(held_out).shape == held_out.shape
    assert model.sample(3, seed=0).shape == (3, *shape)
    if settings.get("std") != "optimal":
        assert model.sample(3, seed=0, mean=False).shape == (3, *shape)


@pytest.mark.parametrize("arch", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize("name", likelihood_names())
def test_every_backbone_serves_every_likelihood(name, arch):
    shape = SHAPE.get(name, (1, 6, 5))
    if len(shape) == 1 and arch != "mlp":
        pytest.skip("vectors")
    x = data(name, {}, shape, count=5)
    settings = fitted_settings(name, {}, float(x.min()), float(x.max()))
    model = models.build(
        shape=shape,
        latent=2,
        width=8,
        arch=arch,
        likelihood=name,
        likelihood_settings=settings,
        input=input_for(name, settings),
    )
    model.begin(x)
    loss = objectives.build()(model, x, Step(seed=0)).loss
    loss.backward()
    assert loss.isfinite()
    z = torch.randn(2, 5, 2)
    assert model.mean(z).shape == (2, 5, *shape)
    assert model.nll(z, x).shape == (2, 5)


def test_parameters_are_such_as_the_likelihood_takes():
    for name in likelihood_names():
        shape = SHAPE.get(name, (1, 4, 3))
        for settings in [{}, *SETTINGS.get(name, [])]:
            given = fitted_settings(name, settings, 0, 3)
            head = Head(name, shape, settings=given, inputs=input_for(name, given))
            out = 3 * torch.randn(7, *head.outputs)
            params = likelihoods.as_tuple(head.params(out, torch.Size([7])))
            named = head().named_params(params)
            assert all(head().domain(key).inside(value).all() for key, value in named.items())


def test_settings_that_do_not_fit_are_named():
    for name, settings, text in (
        ("gaussian", {"sd": 1.0}, "likelihood gaussian has no setting sd; it has std, const"),
        ("gaussian", {"std": -1.0}, "std must be positive and finite, got -1"),
        ("gaussian", {"scale_per": "row"}, "scale_per must be all, column or element, got 'row'"),
        ("categorical", {}, "needs classes, at least 2, got None"),
    ):
        with pytest.raises(InputError, match=text):
            Head(name, (4,), settings=settings)
    with pytest.raises(InputError, match="takes images of 1 or 3 channels"):
        Head("discretized_logistic_mixture", (4,))
    with pytest.raises(InputError, match="takes vectors of counts"):
        Head("multinomial", (1, 2, 2))
    with pytest.raises(InputError, match=r"does not take the data's values, 0\.5 to 0\.5"):
        check_target(torch.full((3, 2), 0.5), "categorical", {"classes": 2})


def test_counts_in_bytes_are_counts_and_bits_are_not_levels():
    head = Head("poisson", (3,), inputs="log1p")
    assert (
        head.show(torch.tensor([[0, 1, 255]], dtype=torch.uint8))[0, 2] == torch.tensor(256.0).log()
    )
    assert head.target(torch.ones(1, 3, dtype=torch.bool)).dtype == torch.uint8
    pixels = Head("bernoulli", (3,))
    assert pixels.show(torch.tensor([[0, 255, 51]], dtype=torch.uint8)).tolist()[0][1] == 1.0
    assert pixels.show(torch.ones(1, 3, dtype=torch.bool)).tolist() == [[1.0, 1.0, 1.0]]
