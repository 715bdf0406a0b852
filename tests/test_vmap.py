"""Samples under torch.func: randomness "same", "different" and "error" as of torch.randn_like."""

import pytest
import torch
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

import vaefast as vf

SHAPE = (6, 4, 3)


def each_of(likelihood):
    model = vf.likelihoods.resolve(likelihood)

    def draw(a, seed=None):
        return model.sample(tuple(a.abs() + 0.1 for _ in range(model.fewest_params())), seed=seed)

    return draw


DRAWS = {
    "rsample": lambda a, seed=None: vf.rsample(a, a, seed=seed),
    "num_samples": lambda a, seed=None: vf.rsample(a, a, num_samples=3, seed=seed),
    "sample_kl": lambda a, seed=None: vf.sample_kl(a, a, seed=seed)[0],
    "sample_monte_carlo_kl": lambda a, seed=None: vf.sample_kl(
        a, a, num_samples=2, estimator="monte_carlo", seed=seed
    )[1],
    "binarize": lambda a, seed=None: vf.nll(
        a, torch.sigmoid(a), vf.Bernoulli(binarize=True), reduction="none", seed=seed
    ),
    "tril": lambda a, seed=None: vf.tril_sample_kl(a, torch.diag_embed(a.exp()), seed=seed)[0],
    "DiagonalGaussian": lambda a, seed=None: vf.DiagonalGaussian(
        torch.cat([a, a], 1)
    ).sample(seed=seed),
    "categorical": lambda a, seed=None: vf.Categorical().sample(a.expand(40, 4, 3), seed=seed),
    "multinomial": lambda a, seed=None: vf.Multinomial().sample(a, total=9, seed=seed),
    **{
        name: each_of(name)
        for name in vf.likelihoods.registered()
        if name in vf.likelihoods._base._defaults
    },
}  # fmt: skip


@pytest.fixture(params=list(DRAWS))
def draw(request):
    return DRAWS[request.param]


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_same_is_one_noise_for_all(draw, chunk_size):
    a = torch.randn(SHAPE[1:])
    torch.manual_seed(5)
    got = vmap(draw, randomness="same", chunk_size=chunk_size)(a.expand(SHAPE))
    first = got[:chunk_size]
    equal(first, first[:1].expand_as(first))
    torch.manual_seed(5)
    equal(first[0], draw(a).to(got.dtype))


@pytest.mark.each(3)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_different_is_a_noise_for_each(draw, chunk_size):
    # Of one datum: only the noise can make a difference. The first way has it batched.
    a = torch.randn(SHAPE[1:])
    index = torch.arange(6.0)
    torch.manual_seed(5)
    for got in (
        vmap(draw, randomness="different", chunk_size=chunk_size)(a.expand(SHAPE)),
        vmap(lambda i: draw(a) + 0 * i, randomness="different", chunk_size=chunk_size)(index),
    ):
        assert len({tuple(one.flatten().tolist()) for one in got}) == 6


def test_error_is_torchs(draw):
    with pytest.raises(RuntimeError, match="randomness error mode"):
        vmap(draw)(torch.randn(SHAPE))


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_a_seed_is_no_randomness(draw, randomness):
    a = torch.randn(SHAPE)
    got = vmap(lambda a: draw(a, seed=7), randomness=randomness)(a)
    equal(got, torch.stack([draw(one, seed=7) for one in a]).to(got.dtype))


def test_a_seed_for_each(draw):
    a = torch.randn(SHAPE)
    states = torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.int64)], 1)
    got = vmap(lambda a, state: draw(a, seed=state))(a, states)
    want = torch.stack([draw(one, seed=state) for one, state in zip(a, states, strict=True)])
    equal(got, want.to(got.dtype))


def test_nested():
    a = torch.zeros(5, 4, 3)
    b = a[:, :1, :1].expand(5, 4, 3)

    def count(inner, outer):
        each = vmap(lambda a: vf.rsample(a, a), randomness=inner)
        z = vmap(each, randomness=outer)(b.unsqueeze(2))
        assert z.shape == (5, 4, 1, 3)
        return len({tuple(one.tolist()) for one in z.flatten(0, 2)})

    assert count("same", "same") == 1
    assert count("different", "same") == 4
    assert count("same", "different") == 5
    assert count("different", "different") == 20


def test_a_generator():
    a = torch.zeros(SHAPE)

    def draws(randomness):
        generator = torch.Generator().manual_seed(3)
        return vmap(lambda a: vf.rsample(a, a, generator=generator), randomness=randomness)(a)

    one = vf.rsample(a[0], a[0], generator=torch.Generator().manual_seed(3))
    equal(draws("same"), one.expand(SHAPE))
    equal(draws("different"), draws("different"))
    assert len({tuple(z.flatten().tolist()) for z in draws("different")}) == 6


def test_grad_alone_draws_as_without_it():
    mu, logvar = torch.randn(2, 4, 3).unbind()
    torch.manual_seed(5)
    want = vf.rsample(mu, logvar)
    torch.manual_seed(5)
    _, got = grad(lambda mu: (lambda z: (z.sum(), z))(vf.rsample(mu, logvar)), has_aux=True)(mu)
    equal(got, want)
    # And what is drawn next is the same.
    left = torch.rand(1)
    torch.manual_seed(5)
    vf.rsample(mu, logvar)
    assert torch.equal(left, torch.rand(1))


class VAE(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(7, 6), torch.nn.Linear(3, 7)

    def forward(self, x, seed=None):
        mu, logvar = self.encoder(x).chunk(2, 1)
        z, kl = vf.sample_kl(mu, logvar, seed=seed)
        return vf.elbo_loss(self.decoder(z), x, kl=kl, likelihood="bernoulli").loss, z


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_gradients_per_sample(randomness, chunk_size):
    model, x = VAE(), torch.rand(6, 7)
    params = dict(model.named_parameters())

    def loss(params, x, seed=None):
        return functional_call(model, params, (x.unsqueeze(0), seed))

    torch.manual_seed(5)
    each = vmap(grad(loss, has_aux=True), (None, 0), randomness=randomness, chunk_size=chunk_size)
    grads, z = each(params, x)
    assert len({tuple(one.flatten().tolist()) for one in z}) == 6
    if randomness == "same" and chunk_size is None:
        for index, one in enumerate(x):
            torch.manual_seed(5)
            want = torch.autograd.grad(loss(params, one)[0], list(params.values()))
            equal([grads[name][index] for name in params], list(want))
    # z alone says which noise it was: the gradient must be that noise's.
    mu, logvar = model.encoder(x).chunk(2, 1)
    z = z.squeeze(1).detach()
    eps = ((z - mu) / torch.exp(0.5 * logvar)).detach()
    for index in range(6):
        noise = eps[index : index + 1]
        m, v = model.encoder(x[index : index + 1]).chunk(2, 1)
        sample, kl = vf.sample_kl(m, v, noise=noise)
        one = x[index : index + 1]
        value = vf.elbo_loss(model.decoder(sample), one, kl=kl, likelihood="bernoulli").loss
        want = torch.autograd.grad(value, list(params.values()))
        torch.testing.assert_close(
            [grads[name][index] for name in params], list(want), rtol=1e-3, atol=1e-4
        )


def test_jacobians():
    mu, logvar = torch.randn(2, 4, 3).unbind()
    want = torch.eye(12).view(4, 3, 4, 3)
    equal(jacrev(lambda mu: vf.rsample(mu, logvar))(mu), want)
    equal(jacrev(lambda mu: vf.rsample(mu, logvar), chunk_size=5)(mu), want)
    equal(jacfwd(lambda mu: vf.rsample(mu, logvar), randomness="same")(mu), want)
    equal(jacfwd(lambda mu: vf.rsample(mu, logvar, seed=3))(mu), want)
    by_scale = jacrev(lambda logvar: vf.rsample(mu, logvar, seed=3))(logvar)
    eps = vf.rsample(torch.zeros(4, 3), torch.zeros(4, 3), seed=3)
    diagonal = (0.5 * torch.exp(0.5 * logvar) * eps).flatten()
    equal(by_scale.view(12, 12), torch.diag(diagonal))
