"""The modules: the functions' numbers, train and eval, learned tensors, validation, repr."""

import copy

import pytest
import torch
from torch import nn

import vaefast as vf
from vaefast.likelihoods import Bernoulli, Gaussian, Laplace
from vaefast.nn import NLL, ELBOLoss, GaussianKL, Reparameterize


def posterior(shape=(5, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(2)]


def test_reparameterize_is_rsample_in_training():
    mu, logvar = posterior()
    for settings in [{}, {"num_samples": 4}, {"param": "softplus", "min_std": 0.1}]:
        got = Reparameterize(temperature=0.5, clamp=(-1.0, 1.0), **settings)(mu, logvar, seed=3)
        want = vf.rsample(mu, logvar, temperature=0.5, clamp=(-1.0, 1.0), seed=3, **settings)
        assert torch.equal(got, want)


def test_reparameterize_gives_mu_in_evaluation_unless_asked():
    mu, logvar = posterior()
    assert Reparameterize().eval()(mu, logvar) is mu
    many = Reparameterize(num_samples=4).eval()(mu, logvar)
    assert torch.equal(many, torch.stack([mu] * 4))
    asked = Reparameterize(sample_in_eval=True).eval()
    assert torch.equal(asked(mu, logvar, seed=1), vf.rsample(mu, logvar, seed=1))


def test_gaussian_kl_is_the_function():
    mu, logvar = posterior()
    prior = posterior((3,), seed=1)
    mask = torch.tensor([True, False, True])
    got = GaussianKL(reduction="sample", clamp=(-1.0, 1.0))(mu, logvar, *prior, mask=mask)
    want = vf.gaussian_kl(mu, logvar, *prior, mask=mask, clamp=(-1.0, 1.0), reduction="sample")
    assert torch.equal(got, want)
    got = GaussianKL(free_bits=0.3, free_bits_per="total")(mu, logvar)
    assert torch.equal(got, vf.gaussian_kl(mu, logvar, free_bits=0.3, free_bits_per="total"))


def test_elbo_loss_and_nll_are_the_functions():
    mu, logvar = posterior()
    logits, x = torch.randn(5, 7), torch.rand(5, 7)
    weight = torch.rand(1, 7)
    settings = {"beta": 0.5, "capacity": 1.0, "reduction": "sample", "clamp": (-1.0, 1.0)}
    got = ELBOLoss("bernoulli", **settings)(logits, x, mu, logvar, weight=weight)
    want = vf.elbo_loss(logits, x, mu, logvar, likelihood="bernoulli", weight=weight, **settings)
    for one, two in zip(got, want, strict=True):
        assert torch.equal(one, two)
    _, kl = vf.sample_kl(mu, logvar)
    got = ELBOLoss("bernoulli", free_bits=2.0, free_bits_per="sample")(logits, x, kl=kl)
    assert (
        got.loss
        == vf.elbo_loss(
            logits, x, kl=kl, likelihood="bernoulli", free_bits=2.0, free_bits_per="sample"
        ).loss
    )
    got = NLL("bernoulli", reduction="sample")(logits, x, weight=weight)
    assert torch.equal(got, vf.nll(logits, x, "bernoulli", weight=weight, reduction="sample"))


def test_beta_may_change_and_may_be_learned():
    mu, logvar = posterior()
    elbo = ELBOLoss("bernoulli")
    first = elbo(torch.zeros(5, 7), torch.ones(5, 7), mu, logvar)
    elbo.beta = 0.0
    second = elbo(torch.zeros(5, 7), torch.ones(5, 7), mu, logvar)
    torch.testing.assert_close(first.loss - second.loss, first.kl)
    learned = ELBOLoss("bernoulli", beta=nn.Parameter(torch.tensor(2.0)))
    assert [name for name, _ in learned.named_parameters()] == ["beta"]


@pytest.mark.parametrize("module", [NLL, ELBOLoss])
@pytest.mark.parametrize(
    ("likelihood", "name"),
    [(lambda t: Gaussian(std=t), "std"), (lambda t: Laplace(scale=t), "scale")],
)
def test_a_learned_scale_is_a_parameter(module, likelihood, name):
    value = nn.Parameter(torch.tensor(0.7))
    loss = module(likelihood(value))
    assert [(n, p) for n, p in loss.named_parameters()] == [(f"likelihood.{name}", value)]
    assert loss.state_dict() == {f"likelihood.{name}": value}
    mean, x = torch.zeros(6, 4), torch.randn(6, 4)
    arguments = (mean, x) if module is NLL else (mean, x, *posterior((6, 2)))

    def result(m):
        out = m(*arguments)
        return out if isinstance(out, torch.Tensor) else out.loss

    result(loss).backward()
    assert value.grad is not None and value.grad != 0

    loaded = module(likelihood(nn.Parameter(torch.tensor(9.0))))
    loaded.load_state_dict(loss.state_dict())
    assert torch.equal(result(loaded), result(loss))

    copied = copy.deepcopy(loss).double()
    with torch.no_grad():
        next(copied.parameters()).fill_(2.0)
    want = result(module(likelihood(2.0)))
    torch.testing.assert_close(result(copied), want, check_dtype=False)
    swapped = torch.func.functional_call(loss, {f"likelihood.{name}": torch.tensor(2.0)}, arguments)
    swapped = swapped if isinstance(swapped, torch.Tensor) else swapped.loss
    torch.testing.assert_close(swapped, want)


def test_a_tensor_that_is_not_learned_is_a_buffer():
    loss = NLL(Gaussian(std=torch.tensor(0.5)))
    assert list(loss.parameters()) == []
    assert list(loss.state_dict()) == ["likelihood.std"]


@pytest.mark.parametrize("module", [NLL, ELBOLoss])
def test_targets_are_validated_unless_told_otherwise(module):
    logits, x = torch.zeros(2, 3), torch.tensor([[0.0, 0.5, 1.0], [2.0, 0.0, 0.0]])
    arguments = (logits, x) if module is NLL else (logits, x, *posterior((2, 2)))
    with pytest.raises(ValueError, match=r"outside the support .* 1 of 6 elements, for example 2"):
        module("bernoulli")(*arguments)
    module("bernoulli", validate=False)(*arguments)


def test_modules_compile_in_one_graph_and_do_not_validate_there():
    elbo, sample = ELBOLoss(Gaussian(std=nn.Parameter(torch.tensor(0.5)))), Reparameterize()
    decoder = nn.Linear(3, 7)

    def step(mu, logvar, x):
        z = sample(mu, logvar, noise=torch.ones_like(mu))
        return elbo(decoder(z), x, mu, logvar).loss

    mu, logvar = posterior()
    x = torch.randn(5, 7)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(mu, logvar, x), step(mu, logvar, x))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Reparameterize(param="sigma"), "param must be one of"),
        (lambda: Reparameterize(num_samples=0), "num_samples must be None or at least 1"),
        (lambda: GaussianKL(reduction="median"), "reduction must be one of"),
        (lambda: GaussianKL(free_bits_per="bit"), "free_bits_per must be one of"),
        (lambda: NLL("bernouli"), "likelihood must be one of 'bernoulli'"),
        (lambda: ELBOLoss("bernoulli", reduction="none"), "reduction must be one of"),
        (lambda: ELBOLoss("bernoulli", clamp=(1.0, 0.0)), "clamp must be"),
    ],
)
def test_bad_settings_are_named_at_construction(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(Reparameterize()) == "Reparameterize()"
    assert repr(Reparameterize(4, clamp=(-1, 1))) == "Reparameterize(num_samples=4, clamp=(-1, 1))"
    assert repr(GaussianKL(free_bits=0.5)) == "GaussianKL(free_bits=0.5)"
    text = repr(ELBOLoss(Gaussian(std=nn.Parameter(torch.ones(()))), beta=4.0))
    assert "beta=4.0" in text
    assert "std=Parameter" in text
    assert "logits=False" in repr(NLL(Bernoulli(logits=False)))
