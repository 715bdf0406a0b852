"""DiagonalGaussian against diffusers' formulas, FusedNormal against torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vaefast.distributions import DiagonalGaussian, FusedNormal

SHAPES = [((5, 6), 1), ((3, 8, 7, 5), 1), ((2, 4, 3, 5, 3), 1), ((3, 7, 6), -1), ((1, 2), 1)]


def parameters(shape, dtype=torch.float64, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)


class Textbook:
    """Diffusers' formulas in float64, over all but the batch."""

    def __init__(self, parameters, dim):
        self.mean, logvar = parameters.double().chunk(2, dim)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.var = self.logvar.exp()

    def kl(self, other=None):
        if other is None:
            elements = self.mean**2 + self.var - 1 - self.logvar
        else:
            elements = (
                ((self.mean - other.mean) ** 2 + self.var) / other.var
                - 1
                - self.logvar
                + other.logvar
            )
        return 0.5 * elements.flatten(1).sum(1)

    def nll(self, sample):
        elements = math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * elements.flatten(1).sum(1)


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_are_diffusers(shape, dim, dtype):
    p, q = parameters(shape, dtype), parameters(shape, dtype, seed=1)
    ours, other = DiagonalGaussian(p, dim=dim), DiagonalGaussian(q, dim=dim)
    wanted, other_wanted = Textbook(p, dim), Textbook(q, dim)
    tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 2e-6, "atol": 1e-6}
    x = parameters(wanted.mean.shape, dtype, seed=2)
    for got, want in [
        (ours.kl(), wanted.kl()),
        (ours.kl(other), wanted.kl(other_wanted)),
        (ours.nll(x), wanted.nll(x.double())),
    ]:
        assert got.shape == (shape[0],)
        torch.testing.assert_close(got.double(), want, **tolerance)
    assert ours.sample().dtype == ours.mode().dtype == ours.std.dtype == dtype
    torch.testing.assert_close(ours.var, ours.std**2, rtol=2e-2, atol=0)


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_mean_and_logvar_are_views(shape, dim):
    p = parameters(shape)
    posterior = DiagonalGaussian(p, dim=dim, clamp=None)
    first, second = p.chunk(2, dim)
    for got, want in [(posterior.mean, first), (posterior.logvar, second)]:
        assert got.data_ptr() == want.data_ptr()
        assert got.stride() == want.stride()


def test_gradients_are_the_formulas_and_stop_at_the_clamp():
    p = parameters((3, 8, 4, 4), scale=15.0).requires_grad_()
    posterior, wanted = DiagonalGaussian(p, clamp=(-20.0, 10.0)), p.chunk(2, 1)
    logvar = wanted[1].clamp(-20.0, 10.0)
    assert (logvar != wanted[1]).any()
    kl = 0.5 * (wanted[0] ** 2 + logvar.exp() - 1 - logvar).sum()
    (want,) = torch.autograd.grad(kl, p)
    (got,) = torch.autograd.grad(posterior.kl().sum(), p)
    torch.testing.assert_close(got, want)
    z = posterior.sample(seed=3)
    eps = (z - posterior.mean) / posterior.std
    (got,) = torch.autograd.grad(z.sum(), p)
    inside = (logvar == wanted[1]) * 0.5 * posterior.std * eps
    torch.testing.assert_close(got, torch.cat([torch.ones_like(eps), inside], 1).detach())


def test_sampling_is_reproducible_and_fused_with_the_kl():
    posterior = DiagonalGaussian(parameters((4, 6, 3, 3)))
    draws = [posterior.sample(torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], posterior.sample(torch.Generator().manual_seed(6)))
    z, kl = posterior.sample_kl(torch.Generator().manual_seed(5))
    torch.testing.assert_close(z, draws[0])
    torch.testing.assert_close(kl, posterior.kl())
    each = [torch.Generator().manual_seed(i) for i in range(4)]
    assert posterior.sample(each).shape == posterior.mean.shape
    many = DiagonalGaussian(torch.tensor([[3.0, math.log(4.0)]]).expand(20_000, 2))
    assert abs(many.sample(seed=1).mean() - 3) < 0.1
    assert abs(many.sample(seed=1).std() - 2) < 0.1


def test_nll_takes_dims_and_broadcasts_the_sample():
    p = parameters((3, 8, 5, 2))
    posterior, x = DiagonalGaussian(p), parameters((3, 4, 5, 2), seed=1)
    torch.testing.assert_close(posterior.nll(x, dims=(1, 2, 3)), posterior.nll(x))
    torch.testing.assert_close(posterior.nll(x, dims=[2, 3]).sum(1), posterior.nll(x))
    torch.testing.assert_close(posterior.nll(x[:1]), posterior.nll(x[:1].expand_as(x)))


def test_deterministic_is_the_point_mass():
    posterior = DiagonalGaussian(parameters((3, 4)), deterministic=True)
    assert torch.equal(posterior.sample(), posterior.mean)
    assert torch.equal(posterior.std, torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(posterior.var, posterior.std)
    assert torch.equal(posterior.kl(), torch.zeros(1, dtype=torch.float64))
    assert torch.equal(posterior.nll(posterior.mean), torch.zeros(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="other must not be deterministic"):
        DiagonalGaussian(parameters((3, 4))).kl(posterior)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"parameters": torch.zeros(3, 5)}, ValueError, r"even size, got \[3, 5\]"),
        ({"dim": 2}, ValueError, r"dim must be a dimension .* got 2"),
        ({"parameters": torch.zeros(3, 4).long()}, TypeError, "parameters must be float64"),
        ({"clamp": (2.0, 1.0)}, ValueError, "clamp must be"),
        (
            {"deterministic": -1},
            TypeError,
            "deterministic must be .* by name, dim=-1",
        ),
        ({"rng": "numpy"}, ValueError, "rng must be one of 'philox', 'torch'"),
        ({"shift": [0.0] * 3}, ValueError, "shift must have one value per channel, 2, got 3"),
        ({"scale": torch.ones(5, 3, 2)}, ValueError, r"scale must broadcast to \[3, 2\]"),
    ],
)
def test_bad_parameters_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        DiagonalGaussian(**{"parameters": torch.zeros(3, 4), **arguments})


BATCHES = [(), (1,), (7,), (3, 5), (2, 1, 4)]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("samples", [(), (1,), (6,), (2, 3), (0,)])
def test_rsample_has_normals_shape_and_gradient(batch, samples):
    loc = parameters(batch).requires_grad_()
    scale = parameters(batch, seed=1).exp().requires_grad_()
    z = FusedNormal(loc, scale).rsample(samples)
    assert z.shape == Normal(loc, scale).rsample(samples).shape
    got = torch.autograd.grad(z.sum(), (loc, scale))
    eps = ((z - loc) / scale).detach()
    torch.testing.assert_close(got[0], torch.full_like(loc, float(math.prod(samples))))
    torch.testing.assert_close(got[1], eps.sum_to_size(batch))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("other", [(), (1,), (6, 1, 1, 1)])
@pytest.mark.parametrize("kind", [Normal, FusedNormal])
def test_kl_is_normals(batch, other, kind):
    loc, scale = parameters(batch).requires_grad_(), parameters(batch, seed=1).exp()
    q = (parameters(other, seed=2).requires_grad_(), parameters(other, seed=3).exp())
    got = kl_divergence(FusedNormal(loc, scale), kind(*q))
    want = kl_divergence(Normal(loc, scale), Normal(*q))
    torch.testing.assert_close(got, want)
    for one, two in zip(
        torch.autograd.grad(got.sum(), (loc, q[0])),
        torch.autograd.grad(want.sum(), (loc, q[0])),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_kl_stays_exact_near_the_prior():
    loc = torch.full((64,), 1e-4)
    scale = 1 + 1e-4 * torch.arange(1, 65) / 64
    exact = kl_divergence(Normal(loc.double(), scale.double()), Normal(0.0, 1.0)).double()
    got = kl_divergence(FusedNormal(loc, scale), Normal(0.0, 1.0)).double()
    assert ((got - exact).abs() / exact).max() < 1e-3


def test_expand_draws_each_element_apart():
    p = FusedNormal(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])).expand((500, 2))
    assert type(p) is FusedNormal
    z = p.rsample((3,))
    assert z.shape == (3, 500, 2)
    assert z.flatten().unique().numel() > 2900
    assert kl_divergence(p, p).shape == (500, 2)
    whole = Independent(p, 1)
    assert kl_divergence(whole, Independent(Normal(0.0, 1.0).expand((500, 2)), 1)).shape == (500,)


def test_sample_carries_no_gradient_and_moments_fit():
    loc = torch.tensor(2.0, requires_grad=True)
    z = FusedNormal(loc, torch.tensor(3.0)).sample((40_000,))
    assert not z.requires_grad
    assert abs(z.mean() - 2) < 0.1
    assert abs(z.std() - 3) < 0.1
