"""TOTALVI's mixture of two negative binomials under the patch: scvi-tools' values and gradients,
nearer to float64's."""

import itertools
import warnings

import pytest
import torch

pytest.importorskip("scvi", reason="needs scvi-tools: pip install '.[integrations]'")

from scvi.distributions import NegativeBinomialMixture
from scvi.distributions import _negative_binomial as counts

from vaefast.integrations import scvi as fast


@pytest.fixture(autouse=True)
def _unpatched():
    yield
    fast.unpatch()


def draw(*shape, seed=0, low=0.05, high=8.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def operands(lead=(), per_feature=True, second=False, large=1.0):
    """x and (mu_1, mu_2, theta_1, theta_2, pi_logits), float64."""
    x = torch.floor(draw(16, 30) * (draw(16, 30, seed=5) > 2) * large)
    mu_1, mu_2 = draw(*lead, 16, 30, seed=1) * large, draw(*lead, 16, 30, seed=2) * large * 3
    shape = (30,) if per_feature else (16, 30)
    thetas = draw(*shape, seed=3), draw(*shape, seed=4) if second else None
    return x, (mu_1, mu_2, *thetas, draw(*lead, 16, 30, seed=6) - 4)


def run(function, x, params, dtype):
    given = [None if t is None else t.to(dtype).requires_grad_() for t in params]
    value = function(x.to(dtype), *given)
    return value, *torch.autograd.grad(value.sum(), [t for t in given if t is not None])


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("per_feature", [True, False])
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("large", [1.0, 1e4])
def test_it_agrees_and_is_nearer_to_float64(lead, per_feature, second, large):
    x, params = operands(lead, per_feature, second, large)
    original = counts.log_mixture_nb
    exact, before = (run(original, x, params, d) for d in (torch.float64, torch.float32))
    with fast.patched():
        assert counts.log_mixture_nb is not original
        after, wide = (
            run(counts.log_mixture_nb, x, params, d) for d in (torch.float32, torch.float64)
        )
    for truth, ours, theirs, precise in zip(exact, after, before, wide, strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == theirs.shape
        scale = truth.detach().abs().max()
        error = (ours - truth).abs().max() / scale
        assert error <= (theirs - truth).abs().max() / scale + 1e-6
        torch.testing.assert_close(precise, truth, rtol=1e-6, atol=float(scale) * 1e-7)
    if large > 1:
        # There lgamma(x + theta) - lgamma(theta) cancels.
        ours, theirs = ((value[0] - exact[0]).abs().max() for value in (after, before))
        assert ours < theirs / 50


def test_a_component_that_is_all_but_excluded_costs_no_digits():
    """A background far from the count, beside a foreground on it, and the other way round."""
    x = torch.tensor([3.0, 3.0, 9000.0, 0.0])
    mu_1, mu_2 = torch.tensor([9e4, 3.0, 0.0, 0.0]), torch.tensor([3.0, 9e4, 9000.0, 1e-9])
    theta, logits = torch.tensor([500.0, 500.0, 5.0, 1e-3]), torch.tensor([0.0, -9.0, 40.0, -40.0])
    original, params = counts.log_mixture_nb, (mu_1, mu_2, theta, None, logits)
    exact = run(original, x, params, torch.float64)
    assert exact[0].min() < -30
    with fast.patched():
        found = run(counts.log_mixture_nb, x, params, torch.float32)
    for ours, truth in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("value", [1.0, 0.5, -1.0, float("nan"), float("inf")])
def test_what_is_no_count_is_warned_of_as_before(value):
    one, x = torch.ones(2, 3), torch.tensor([[1.0, 2.0, value], [0.0, 0.0, 0.0]])
    p = NegativeBinomialMixture(mu1=one, mu2=2 * one, theta1=one, mixture_logits=one)

    def warned():
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            p.log_prob(x)
            p.log_prob(x[1:])
        return [str(w.message) for w in record]

    before = warned()
    with fast.patched():
        assert warned() == before


def test_other_functions_go_to_scvis_own():
    seen = []

    def log(t):
        seen.append(t)
        return torch.log(t)

    x, params = operands()
    want = counts.log_mixture_nb(x, *params)
    with fast.patched():
        torch.testing.assert_close(counts.log_mixture_nb(x, *params, log_fn=log), want)
        assert seen
        lgamma = lambda t: torch.lgamma(t)  # noqa: E731
        torch.testing.assert_close(counts.log_mixture_nb(x, *params, lgamma_fn=lgamma), want)


def test_whatever_broadcasts():
    """Any one of the six alone has the samples' dimension, or lacks all but the last."""
    base = [draw(4, 5, seed=i) for i in range(6)]
    base[0] = torch.floor(base[0])
    for index, change in itertools.product(range(6), ("samples", "row", "number")):
        given = [*base]
        shape = {"samples": (3, 4, 5), "row": (5,), "number": (1, 1)}[change]
        given[index] = torch.floor(draw(*shape, seed=9))
        x, mu_1, mu_2, theta_1, theta_2, logits = given
        theta_1 = theta_1 + 0.5
        for second in (theta_2 + 0.5, None):
            call = (x, mu_1, mu_2, theta_1, second, logits)
            # scvi-tools' own takes one shape alone.
            wide = iter(torch.broadcast_tensors(*(t for t in call if t is not None)))
            want = counts.log_mixture_nb(*(None if t is None else next(wide) for t in call))
            with fast.patched():
                got = counts.log_mixture_nb(*call)
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
