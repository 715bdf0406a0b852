"""Many upstream gradients at once: `is_grads_batched`, and the vectorised Jacobians built on it."""

import pytest
import torch

import vaefast as vf

B, D = 4, 3


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def likelihood(model, reduction):
    logits, target = leaf(B, 5), torch.rand(B, 5, dtype=torch.float64).round()
    return lambda: vf.nll(logits, target, model, reduction=reduction), (logits,)


def gaussian(reduction):
    pair, target = (leaf(B, 5), leaf(B, 5)), torch.randn(B, 5, dtype=torch.float64)
    return lambda: vf.nll(pair, target, "gaussian", reduction=reduction), pair


def posterior(operator, **settings):
    pair = leaf(B, D), leaf(B, D)
    return lambda: operator(*pair, **settings), pair


def categorical():
    logits = leaf(B, 6, 2)
    target = torch.randint(6, (B, 2))
    return lambda: vf.nll(logits, target, "categorical", reduction="sample"), (logits,)


def linear():
    leaves = leaf(B, D), leaf(7, D), leaf(7)
    target = torch.rand(B, 7, dtype=torch.float64).round()
    return lambda: vf.linear_nll(*leaves, target, "bernoulli", reduction="sample"), leaves


def tc_terms():
    leaves = leaf(B, D), leaf(B, D), leaf(B, D)
    return lambda: vf.tc_terms(*leaves, dataset_size=50).tc, leaves


def mixture():
    leaves = leaf(B, D), leaf(6, D), leaf(6, D)
    return lambda: vf.mixture_log_prob(*leaves), leaves


def mmd():
    leaves = leaf(B, D), leaf(B, D)
    return lambda: vf.mmd(*leaves), leaves


def log_weights():
    leaves = leaf(B, 5), leaf(2, B, D), leaf(B, D), leaf(B, D)
    target = torch.rand(B, 5, dtype=torch.float64).round()

    def call():
        params = leaves[0].expand(2, B, 5)
        return vf.log_weights(params, target, *leaves[1:], likelihood="bernoulli")

    return call, leaves


CASES = {
    "nll sum": lambda: likelihood("bernoulli", "sum"),
    "nll sample": lambda: likelihood("bernoulli", "sample"),
    "nll none": lambda: likelihood("bernoulli", "none"),
    "nll of two": lambda: gaussian("batchmean"),
    "categorical": categorical,
    "linear_nll": linear,
    "elbo_loss": lambda: posterior(
        lambda *p: (
            vf.elbo_loss(
                p[0], torch.ones(B, D, dtype=torch.float64), kl=p[1].sum(1), likelihood="gaussian"
            ).loss
        )
    ),
    "rsample": lambda: posterior(vf.rsample, seed=1),
    "gaussian_kl": lambda: posterior(vf.gaussian_kl),
    "sample_kl": lambda: posterior(lambda *p: vf.sample_kl(*p, seed=1)[1]),
    "sample_monte_carlo_kl": lambda: posterior(
        lambda *p: vf.sample_kl(*p, seed=1, num_samples=2, estimator="monte_carlo")[1]
    ),
    "log_weights": log_weights,
    "tc_terms": tc_terms,
    "mixture_log_prob": mixture,
    "mmd": mmd,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_batched_upstream_gradients(name, backend):
    if backend not in vf.available_backends():
        pytest.skip("no native core")
    torch.manual_seed(0)
    with vf.backend(backend):
        call, leaves = CASES[name]()
        # The second call goes the fast path, where there is one.
        for _ in range(2):
            output = call()
            upstream = torch.randn(5, *output.shape, dtype=torch.float64)
            found = torch.autograd.grad(output, leaves, upstream, is_grads_batched=True)
            single = [torch.autograd.grad(call(), leaves, g) for g in upstream]
            for got, want in zip(found, zip(*single, strict=True), strict=True):
                torch.testing.assert_close(got, torch.stack(want))
                assert not got.requires_grad


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vectorised_jacobian():
    mu, logvar = torch.randn(B, D), torch.randn(B, D)
    for _ in range(2):
        fast, slow = (
            torch.autograd.functional.jacobian(
                lambda m, s: vf.sample_kl(m, s, seed=2)[0], (mu, logvar), vectorize=vectorize
            )
            for vectorize in (True, False)
        )
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b)
