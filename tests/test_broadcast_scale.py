"""A scale that broadcasts to mu: the numbers and gradients of the same scale written out."""

import pytest
import torch

import vaefast as vf

SHAPES = [(), (5,), (4, 1)]
DTYPES = [torch.float64, torch.float16]


def _weigh(z):
    return -z.square().sum(-1)


# Every operator with a posterior, of mu and scale [4, 5].
OPERATORS = {
    "rsample": lambda m, s: vf.rsample(m, s, seed=1),
    "rsample, many": lambda m, s: vf.rsample(m, s, seed=1, num_samples=3),
    "gaussian_kl": lambda m, s: vf.gaussian_kl(m, s),
    "gaussian_kl, prior": lambda m, s: vf.gaussian_kl(m, s, m.detach() + 1, s.detach()),
    "gaussian_kl, masked": lambda m, s: vf.gaussian_kl(m, s, mask=m.detach() > 0),
    "sample_kl": lambda m, s: sum(t.sum() for t in vf.sample_kl(m, s, seed=1)),
    "monte_carlo": lambda m, s: sum(
        t.sum() for t in vf.sample_kl(m, s, seed=1, num_samples=2, estimator="monte_carlo")
    ),
    "elbo_loss": lambda m, s: (
        vf.elbo_loss(
            m.detach(), m.detach().sigmoid(), m, s, likelihood="bernoulli", free_bits=0.1
        ).loss
    ),
    "log_weights": lambda m, s: vf.log_weights(
        torch.zeros_like(m), m.detach(), m.detach() + 1, m, s, likelihood="gaussian"
    ),
    "monte_carlo_kl": lambda m, s: vf.monte_carlo_kl(m.detach() + 1, m, s),
    "tc_terms": lambda m, s: sum(
        t.sum() for t in vf.tc_terms(m.detach() + 1, m, s, dataset_size=9)
    ),
    "mixture_log_prob": lambda m, s: vf.mixture_log_prob(m.detach() + 1, m, s),
}


@pytest.mark.each(3)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_is_the_scale_written_out(backend, operator, shape, dtype):
    call = OPERATORS[operator]
    device = backend.device
    mu = torch.randn(4, 5, device=device).to(dtype).requires_grad_()
    scale = (0.5 * torch.randn(shape, device=device)).to(dtype).requires_grad_()
    whole = scale.detach().expand(4, 5).clone().requires_grad_()
    # Twice: the second call may be a prepared one.
    for _ in range(2):
        got, want = call(mu, scale), call(mu, whole)
        assert got.dtype == want.dtype
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype != torch.float64 else {}
        if dtype in (torch.bfloat16, torch.float16):
            tolerance = {"rtol": 1e-2, "atol": 1e-2}
        torch.testing.assert_close(got, want, **tolerance)
        upstream = torch.randn_like(want)
        ours = torch.autograd.grad(got, (mu, scale), upstream)
        theirs = torch.autograd.grad(want, (mu, whole), upstream)
        assert ours[1].shape == scale.shape
        assert ours[1].dtype == dtype
        summed = theirs[1].double().sum_to_size(shape).to(dtype)
        torch.testing.assert_close(ours[0], theirs[0], **tolerance)
        torch.testing.assert_close(ours[1], summed, **tolerance)


def test_a_sum_in_half_precision_is_of_what_was_not_rounded(backend):
    """In bfloat16 each of 4096 elements' gradients would be rounded to 8 bits first."""
    mu = torch.randn(4096, 3, device=backend.device)
    scale = torch.zeros(3, device=backend.device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.rand(4096, 3, device=backend.device)
    (got,) = torch.autograd.grad(vf.gaussian_kl(mu, scale + 0.3, weight=weight), scale)
    wide = scale.detach().double().requires_grad_()
    used = (scale.detach() + 0.3).double() + wide
    (want,) = torch.autograd.grad(vf.gaussian_kl(mu.double(), used, weight=weight.double()), wide)
    assert torch.equal(got, want.to(torch.bfloat16))


def test_the_modules(backend):
    mu = torch.randn(4, 5, device=backend.device)
    std = torch.full((5,), 0.5, device=backend.device, requires_grad=True)
    z = vf.nn.Reparameterize(param="std")(mu, std, seed=3)
    assert torch.equal(z, vf.rsample(mu, std.expand(4, 5).clone(), param="std", seed=3))
    kl = vf.nn.GaussianKL(param="std")(mu, std)
    torch.testing.assert_close(kl, vf.gaussian_kl(mu, std.expand(4, 5), param="std"))
    with pytest.raises(ValueError, match="scale under param='std' must be positive"):
        vf.nn.GaussianKL(param="std")(mu, -std)


def test_what_does_not_broadcast():
    mu = torch.zeros(4, 5)
    for shape in [(4,), (4, 5, 1), (1, 4, 5), (2, 5), (0,)]:
        with pytest.raises(ValueError, match="mu and scale must have the same shape"):
            vf.gaussian_kl(mu, torch.zeros(shape))
    with pytest.raises(ValueError, match="mu must have a batch dimension"):
        vf.rsample(torch.zeros(()), torch.zeros(()))


def test_under_a_compiler_and_transforms(backend):
    mu = torch.randn(4, 5, device=backend.device)
    scale = torch.zeros(5, device=backend.device)

    def loss(m, s):
        z, kl = vf.sample_kl(m, s, seed=2)
        return z.square().sum() + kl.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(mu, scale), loss(mu, scale))
    want = torch.autograd.functional.jacobian(loss, (mu, scale))[1]
    torch.testing.assert_close(torch.func.grad(loss, 1)(mu, scale), want)
    rows = torch.func.vmap(vf.gaussian_kl, (0, None))(mu.expand(3, 4, 5), scale)
    torch.testing.assert_close(rows, vf.gaussian_kl(mu, scale).expand(3))


@pytest.mark.skipif("native" not in vf.available_backends(), reason="the reference makes no plans")
@pytest.mark.parametrize("name", list(OPERATORS)[:7])
def test_a_call_like_one_before_is_fast(name):
    m, s = torch.randn(4, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    with vf.backend("native"):
        OPERATORS[name](m, s)
        calls = vf.explain(lambda: OPERATORS[name](m, s)).calls
        got, want = OPERATORS[name](m, s), OPERATORS[name](m, s.expand(4, 5).contiguous())
    assert calls and all(call.fast for call in calls), calls
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("operator", [vf.rsample, vf.gaussian_kl, vf.sample_kl])
def test_none_is_no_parameter(operator):
    for mu, scale, name in ((None, torch.ones(3), "mu"), (torch.ones(2, 3), None, "scale")):
        with pytest.raises(TypeError, match=f"{name} must be"):
            operator(mu, scale)
