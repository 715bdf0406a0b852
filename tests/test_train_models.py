"""The models and objectives of the registries: each with each, and each against what it says."""

import math

import pytest
import torch

import vaefast as vf
from vaefast.train import InputError, models, objectives
from vaefast.train.data import Samples
from vaefast.train.evaluate import evaluate
from vaefast.train.objectives import Step

SHAPE = (1, 4, 3)


def build(name, **settings):
    torch.manual_seed(0)
    return models.build(name, shape=SHAPE, latent=3, likelihood="gaussian", width=16, **settings)


def x(count=6):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def pairs():
    for name in models.registered():
        for objective in objectives.registered():
            try:
                objectives.build(objective).check(build(name))
            except InputError:
                continue
            yield name, objective


@pytest.mark.each(3)
@pytest.mark.parametrize(("name", "objective"), list(pairs()))
def test_every_objective_trains_every_model_that_it_takes(name, objective):
    model, made = build(name), objectives.build(objective)
    model.begin(x(40))
    step = Step(dataset_size=40)
    before = made.held_out(model, x(40), step._replace(seed=1)).loss
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for seed in range(40):
        adam.zero_grad()
        out = made(model, x(40), step._replace(seed=seed))
        out.loss.backward()
        adam.step()
        assert all(value.isfinite() and value.dim() == 0 for value in out)
        assert not out.nll.requires_grad
        assert not out.kl.requires_grad
    after = made.held_out(model, x(40), step._replace(seed=1)).loss
    assert after < before
    again = made(model, x(), step._replace(seed=5)).loss
    assert torch.equal(again, made(model, x(), step._replace(seed=5)).loss)


@pytest.mark.parametrize("objective", objectives.registered())
@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_of_one_or_none_has_a_loss(objective, count):
    model = build("vae")
    loss = objectives.build(objective)(model, x(count), Step(seed=0, dataset_size=9)).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("samples", [None, 5])
@pytest.mark.parametrize("name", models.registered())
def test_parts_of_a_batch_have_their_parts_of_one_stream(name, samples):
    model = build(name)
    whole = model.draw(x(), num_samples=samples, seed=7)
    parts = [
        model.draw(x()[rows], num_samples=samples, seed=7, offset=rows.start)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    axis = 0 if samples is None else 1
    torch.testing.assert_close(torch.cat([p.z for p in parts], axis), whole.z)
    assert not torch.equal(whole.z, model.draw(x(), num_samples=samples, seed=8).z)


@pytest.mark.parametrize("name", models.registered())
def test_the_kl_is_the_mean_of_log_q_over_p_at_its_samples(name):
    model = build(name).double()
    given = x().double()
    closed = model.draw(given, num_samples=20_000, seed=1)
    one = model.draw(given, num_samples=20_000, estimator="monte_carlo", seed=2)
    error = one.kl.std(0) / math.sqrt(20_000)
    kl = closed.kl if closed.kl.dim() == 1 else closed.kl.mean(0)
    assert ((one.kl.mean(0) - kl).abs() < 6 * error + 1e-9).all()


@pytest.mark.parametrize("name", models.registered())
def test_weights_and_annealing_agree_on_log_p(name):
    model = build(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    data = Samples(x(2))
    sampled = evaluate(model, data, samples=4000, seed=1)
    annealed = evaluate(model, data, samples=20, anneal=30, seed=1)
    both = math.hypot(sampled["log_px_standard_error"], annealed["log_px_standard_error"])
    assert abs(sampled["log_px"] - annealed["log_px"]) < 6 * both + 0.05
    assert sampled["elbo"] < sampled["log_px"]
    assert ("mutual_information" in sampled) == model.diagonal
    assert ("kl_per_dimension" in sampled) == (name != "vamp")


@pytest.mark.parametrize("name", models.registered())
def test_the_prior_is_what_its_samples_come_from(name):
    # E_p[grad log p(z)] = 0, and E_p[z . grad log p(z)] = -dimensions.
    model = build(name).double()
    z = model.prior(40_000, seed=3).detach().requires_grad_()
    (grad,) = torch.autograd.grad(model.log_prior(z).sum(), z)
    error = grad.std(0) / math.sqrt(len(z))
    assert (grad.mean(0).abs() < 6 * error).all()
    dot = (z * grad).sum(1).detach()
    assert abs(dot.mean() + model.latent) < 6 * dot.std() / math.sqrt(len(z))


def test_log_p_of_a_linear_model_is_its_closed_form():
    torch.manual_seed(0)
    model = models.build(
        "full_covariance",
        shape=(4,),
        latent=2,
        likelihood="gaussian",
        width=4,
        likelihood_settings={"std": 0.7},
    ).double()
    layer = torch.nn.Linear(2, 4).double()
    model.decoder = layer
    given = torch.randn(5, 4, dtype=torch.float64)
    covariance = layer.weight @ layer.weight.T + 0.49 * torch.eye(4)
    normal = torch.distributions.MultivariateNormal(layer.bias, covariance)
    want = normal.log_prob(given)
    found = vf.log_marginal(model, given, num_samples=20_000, chunk=2000, return_error=True)
    assert ((found.estimate - want).abs() < 6 * found.standard_error + 1e-3).all()


def test_balance_shifts_gradients_and_leaves_the_kl():
    grads = {}
    for share in (None, 0.0, 0.25, 1.0):
        model = build("hierarchical", balance=share)
        kl = model.draw(x(), seed=2).kl
        kl.sum().backward()
        prior = torch.cat([p.grad.flatten() for p in model.between.parameters()])
        lower = torch.cat([p.grad.flatten() for p in model.bottom.parameters()])
        grads[share] = (kl.detach(), prior, lower)
    for share, (kl, _, lower) in grads.items():
        torch.testing.assert_close(kl, grads[None][0])
        weight = 1.0 if share is None else 1 - share
        torch.testing.assert_close(lower, weight * grads[0.0][2])
    mixed = 0.25 * grads[1.0][1] + 0.75 * grads[0.0][1]
    torch.testing.assert_close(grads[0.25][1], mixed)


def test_capacity_and_warm_up():
    model = build("vae")
    plain = objectives.build("elbo", beta=3.0)(model, x(), Step(seed=1))
    torch.testing.assert_close(plain.loss.detach(), plain.nll + 3 * plain.kl)
    warm = objectives.build("elbo", beta=3.0)(model, x(), Step(seed=1, warm=0.5))
    torch.testing.assert_close(warm.loss.detach(), plain.nll + 1.5 * plain.kl)
    aimed = objectives.build("elbo", beta=3.0, capacity=100.0)(model, x(), Step(seed=1, warm=0.5))
    torch.testing.assert_close(aimed.loss.detach(), plain.nll + 3 * (50 - plain.kl))
    free = objectives.build("elbo", free_bits=10.0)(model, x(), Step(seed=1))
    torch.testing.assert_close(free.loss.detach(), plain.nll + 30)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 7), (1, 3, 40), (2, 1, 1)])
def test_residual_networks_fit_any_image_size(shape, depth):
    model = models.build(shape=shape, latent=2, arch="resnet", width=4, depth=depth)
    given = torch.rand(3, *shape)
    assert model.reconstruct(given).shape == given.shape
    objectives.build()(model, given, Step()).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: models.build("gan", shape=(3,)), "model must be one of .*vae.*, got 'gan'"),
        (
            lambda: models.build(shape=(3,), layers=2),
            "model vae has no setting layers; it has latent",
        ),
        (lambda: models.build(shape=(3,), width=0), "width must be at least 1, got 0"),
        (
            lambda: models.build("hierarchical", shape=(3,), balance=2.0),
            r"balance must be in \[0, 1\]",
        ),
        (lambda: objectives.build("gan"), "objective must be one of .*elbo.*, got 'gan'"),
        (lambda: objectives.build("elbo", gamma=1.0), "objective elbo has no setting gamma"),
        (lambda: objectives.build("elbo", beta=-1.0), "beta must be at least 0"),
        (lambda: objectives.build("iwae", samples=0), "samples must be at least 1"),
        (
            lambda: objectives.build("beta_tcvae").check(build("vamp")),
            "objective beta_tcvae needs model vae, got vamp",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, text):
    with pytest.raises(InputError, match=text):
        make()
