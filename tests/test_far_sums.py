"""Logarithms of sums of exponentials of far numbers, such as the log weights of a whole image:
what their gradients weigh by adds up to 1 wherever the sum's own rounding lies."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import vaefast as vf

FAR = [0.0, -1e4, -3e6, 2e8]
BOUNDS = {
    "iwae": {},
    "dreg": {},
    "ciwae": {"beta": 0.0},
    "miwae": {"groups": 1},
    "renyi": {"alpha": 0.5},
}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("far", FAR)
def test_log_weights(bound, far):
    log_w = (torch.tensor([[0.0], [16.0], [32.0], [-16.0]]) / 16 + far).requires_grad_()
    loss = vf.importance_loss(log_w, bound=bound, **BOUNDS[bound])
    (grad,) = torch.autograd.grad(loss, log_w)
    power = 0.5 if bound == "renyi" else 1.0
    want = torch.softmax(power * log_w.detach().double(), 0)
    want = want**2 if bound == "dreg" else want
    torch.testing.assert_close(grad.double(), -want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gone", ["one", "all"])
def test_weights_of_zero(gone):
    log_w = torch.tensor([[-3e6], [-3e6], [-torch.inf]])
    log_w = log_w if gone == "one" else log_w - torch.inf
    value = -vf.importance_loss(log_w)
    want = torch.logsumexp(log_w.double(), 0).mean() - torch.log(torch.tensor(3.0))
    torch.testing.assert_close(value, want.float())
    grad = torch.func.grad(vf.importance_loss)(log_w)
    if gone == "one":
        torch.testing.assert_close(grad, torch.tensor([[-0.5], [-0.5], [0.0]]))


@pytest.mark.parametrize("distance", [1.0, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("backend", vf.available_backends())
def test_points_far_from_all_components(backend, distance):
    """Two components that are one, however they share the gradient: together they have that of
    one Gaussian."""
    z = torch.zeros(1, 2)
    leaves = [torch.full((2, 2), distance), torch.zeros(2, 2)]
    mu, logvar = (t.requires_grad_() for t in leaves)
    want = torch.full((2,), -distance), torch.full((2,), (distance**2 - 1) / 2)
    with vf.backend(backend):
        value = vf.mixture_log_prob(z, mu, logvar).sum()
        terms = vf.tc_terms(z.expand(2, 2), mu, logvar, dataset_size=10)
    grads = torch.autograd.grad(value, (mu, logvar))
    for grad, expected in zip(grads, want, strict=True):
        torch.testing.assert_close(grad.sum(0), expected, rtol=1e-4, atol=1e-4)
    # What lies far in one dimension from every posterior, its own too, is beyond tc_terms.
    if distance <= 1e3:
        # log q(z|x) and log q(z) have the same gradient.
        grads = torch.autograd.grad(terms.mi.sum(), (mu, logvar), retain_graph=True)
        for grad, expected in zip(grads, want, strict=True):
            assert (grad.sum(0).abs() <= 2e-4 * expected.abs() + 1e-4).all()
    if distance <= 30:
        grads = torch.autograd.grad(terms.dim_kl.sum(), (mu, logvar))
        for grad, expected in zip(grads, want, strict=True):
            torch.testing.assert_close(grad.sum(0), 2 * expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("backend", vf.available_backends())
def test_logits(backend, far):
    logits = torch.arange(4.0)[None] + far
    counts = torch.tensor([[2.0, 0.0, 1.0, 5.0]])
    mixture = torch.zeros(1, 6, 1, 1)
    mixture[:, :2] = far + torch.arange(2.0).view(1, 2, 1, 1)
    with vf.backend(backend):
        for params, target, likelihood, width in (
            (logits, counts, vf.Multinomial(), 4),
            (logits, torch.tensor([1]), vf.Categorical(), 4),
            (mixture, torch.zeros(1, 1, 1, 1), vf.DiscretizedLogisticMixture(1, 2), 2),
        ):
            leaf = params.clone().requires_grad_()
            (grad,) = torch.autograd.grad(vf.nll(leaf, target, likelihood), leaf)
            # A constant added to all logits changes nothing.
            assert abs(grad[:, :width].sum()) < 1e-5


def test_the_number_of_samples_is_not_compiled_anew():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(vf.importance_loss, fullgraph=True, backend=counter)
    for samples in (3, 5, 8, 2):
        log_w = torch.arange(samples * 2.0).view(samples, 2) - 1e5
        torch.testing.assert_close(compiled(log_w), vf.importance_loss(log_w))
    assert counter.frame_count <= 2
