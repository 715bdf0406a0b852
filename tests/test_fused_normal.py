"""FusedNormal's density, and its KL to a standard prior, which reads no prior."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

import vaefast as vf
from vaefast import distributions
from vaefast.distributions import FusedNormal, normal_kl, normal_log_prob


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# Shapes of value and of the parameters.
SHAPES = [
    ((), ()),
    ((5,), ()),
    ((), (5,)),
    ((4, 5), (4, 5)),
    ((3, 4, 5), (4, 5)),
    ((2, 3, 4, 5), (4, 5)),
    ((4, 5), (3, 4, 5)),
    ((4, 1), (1, 5)),
    ((3, 4, 5), (4, 1)),
    ((3, 4, 5), (5,)),
    ((0, 5), (0, 5)),
    ((4, 0), (4, 0)),
]


@pytest.mark.parametrize(
    ("value", "batch", "events"),
    [(value, batch, n) for value, batch in SHAPES for n in range(min(len(batch), 2) + 1)],
)
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_prob_is_normals(value, batch, events, few, dtype, monkeypatch):
    monkeypatch.setattr(distributions, "_FEW", 1 << 14 if few else 0)
    exact = [t.requires_grad_() for t in (draw(*value), draw(*batch, seed=1), draw(*batch, seed=2))]
    given = [t.detach().to(dtype).requires_grad_() for t in exact]

    def log_prob(p, z, loc, log_scale):
        return p(Normal(loc, log_scale.exp()), z)

    want = log_prob(lambda p, z: p.log_prob(z), *exact)
    want = want.flatten(want.dim() - events).sum(-1) if events else want
    got = log_prob(lambda p, z: normal_log_prob(p, z, events), *given)
    assert got.dtype == dtype
    assert got.shape == want.shape
    tolerance = (
        {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    )
    torch.testing.assert_close(got.double(), want, **tolerance)
    weight = draw(*want.shape, seed=3)
    got_grads = torch.autograd.grad((got * weight.to(dtype)).sum(), given)
    want_grads = torch.autograd.grad((want * weight).sum(), exact)
    for one, two in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-4, atol=1e-4)


def test_log_prob_is_what_the_method_gives_and_validates():
    # By default torch.distributions does not validate once anything was compiled.
    p = FusedNormal(draw(4, 5), draw(4, 5).exp(), validate_args=True)
    z = draw(3, 4, 5, seed=1)
    torch.testing.assert_close(p.log_prob(z), Normal(p.loc, p.scale).log_prob(z))
    torch.testing.assert_close(p.log_prob(z), normal_log_prob(p, z, 0))
    with pytest.raises(ValueError, match="within the support"):
        p.log_prob(torch.full((4, 5), math.nan))
    bad = FusedNormal(p.loc, p.scale, validate_args=False)
    assert bad.log_prob(torch.full((4, 5), math.nan)).isnan().all()
    half = FusedNormal(p.loc.bfloat16(), p.scale.bfloat16())
    got = half.log_prob(z.bfloat16())
    assert got.dtype == torch.float32
    exact = Normal(half.loc.double(), half.scale.double()).log_prob(z.bfloat16().double())
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


def standard(shape, kind, dtype=torch.float32):
    """N(0, 1) as programs write it."""
    zero, one = torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)
    return {
        "numbers": lambda: Normal(0.0, 1.0),
        "expanded": lambda: Normal(0.0, 1.0).expand(shape),
        "tensors": lambda: Normal(zero, one),
        "fused": lambda: FusedNormal(zero, one),
        "strided": lambda: Normal(zero.T.contiguous().T, one),
        "one row": lambda: Normal(zero[:1], one[:1]),
    }[kind]()


@pytest.mark.parametrize("kind", ["numbers", "expanded", "tensors", "fused", "strided", "one row"])
@pytest.mark.parametrize("events", [0, 1])
def test_a_standard_prior_is_seen(kind, events, monkeypatch):
    loc, scale = (t.float().requires_grad_() for t in (draw(6, 5), draw(6, 5, seed=1).exp()))
    p, q = FusedNormal(loc, scale), standard((6, 5), kind)
    seen = []

    def gaussian_kl(*tensors, **settings):
        seen.append(len(tensors))
        return vf.gaussian_kl(*tensors, **settings)

    monkeypatch.setattr(distributions, "gaussian_kl", gaussian_kl)
    want = kl_divergence(Normal(loc, scale), Normal(torch.zeros(6, 5), torch.ones(6, 5)))
    want = want.sum(-1) if events else want
    for _ in range(2):
        got = normal_kl(p, q, events)
        torch.testing.assert_close(got, want)
        weight = draw(*got.shape, seed=2).float()
        got_grads = torch.autograd.grad((got * weight).sum(), (loc, scale))
        want_grads = torch.autograd.grad((want * weight).sum(), (loc, scale), retain_graph=True)
        for one, two in zip(got_grads, want_grads, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert seen == [2, 2]


def other_priors():
    zero, one = torch.zeros(6, 5), torch.ones(6, 5)
    nearly = zero.clone()
    nearly[3, 2] = 1e-2
    wide = one.clone()
    wide[-1, -1] = 1.01
    yield "learned", Normal(zero.clone().requires_grad_(), one)
    yield "learned scale", Normal(zero, one.clone().requires_grad_())
    yield "moved", Normal(nearly, one)
    yield "wide", Normal(zero, wide)
    yield "no number", Normal(torch.full((6, 5), math.nan), one, validate_args=False)
    yield (
        "one number",
        Normal(torch.cat([torch.full((1, 5), math.nan), zero[1:]]), one, validate_args=False),
    )
    yield "numbers", Normal(0.0, 2.0)


@pytest.mark.parametrize(("name", "q"), list(other_priors()))
def test_any_other_prior_is_read(name, q):
    loc, scale = draw(6, 5).float(), draw(6, 5, seed=1).float().exp()
    got = kl_divergence(FusedNormal(loc, scale), q)
    want = kl_divergence(Normal(loc, scale), q)
    torch.testing.assert_close(got, want, equal_nan=True)
    if q.loc.requires_grad:
        one, two = (torch.autograd.grad(k.sum(), q.loc)[0] for k in (got, want))
        torch.testing.assert_close(one, two)


def test_a_prior_that_changes_is_read_anew():
    p = FusedNormal(draw(6, 5).float(), draw(6, 5, seed=1).float().exp())
    loc, scale = torch.zeros(6, 5), torch.ones(6, 5)
    q = Normal(loc, scale)
    for _ in range(3):
        torch.testing.assert_close(kl_divergence(p, q), kl_divergence(Normal(p.loc, p.scale), q))
        loc += 0.5
        scale *= 2


@pytest.mark.parametrize("upstream", ["dense", "per sample", "one", "per dimension", "transposed"])
def test_the_kls_gradient_takes_any_upstream_gradient(upstream):
    """A call like one before goes the fast path; so does its backward pass where it can."""
    grad = {
        "dense": draw(6, 5),
        "per sample": draw(6, 1).expand(6, 5),
        "one": draw(1, 1).expand(6, 5),
        "per dimension": draw(1, 5).expand(6, 5),
        "transposed": draw(5, 6).T,
    }[upstream].float()
    for make in (lambda t: t, lambda t: torch.cat([t, t], 1)[:, :5]):
        loc, scale = (make(t.float()) for t in (draw(6, 5, seed=1), draw(6, 5, seed=2).exp()))
        for _ in range(3):
            mu, sigma = loc.detach().requires_grad_(), scale.detach().requires_grad_()
            kl = vf.gaussian_kl(mu, sigma, param="std", reduction="none")
            got = torch.autograd.grad(kl, (mu, sigma), grad, retain_graph=True)
            again = torch.autograd.grad(kl, (mu, sigma), grad)
            assert all(map(torch.equal, got, again))
            torch.testing.assert_close(got[0], grad * mu)
            torch.testing.assert_close(got[1], grad * (sigma - 1 / sigma), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(kl, kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0)))


def test_transforms_tracers_and_compilers_see_no_shortcut():
    loc, scale = draw(6, 5).float(), draw(6, 5, seed=1).float().exp()
    prior = torch.zeros(6, 5), torch.ones(6, 5)
    want = kl_divergence(Normal(loc, scale), Normal(*prior))

    def kl(loc, scale, prior_loc, prior_scale):
        p = FusedNormal(loc, scale, validate_args=False)
        return kl_divergence(p, Normal(prior_loc, prior_scale, validate_args=False))

    def log_prob(loc, scale, value, _):
        return FusedNormal(loc, scale, validate_args=False).log_prob(value)

    for function, expected in ((kl, want), (log_prob, Normal(loc, scale).log_prob(prior[0]))):
        torch.testing.assert_close(torch.func.vmap(function)(loc, scale, *prior), expected)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(loc, scale, *prior), expected)
    moved = torch.full((6, 5), 2.0), torch.full((6, 5), 3.0)
    traced = torch.jit.trace(kl, (loc, scale, *prior), check_trace=False)
    torch.testing.assert_close(
        traced(loc, scale, *moved), kl_divergence(Normal(loc, scale), Normal(*moved))
    )


def test_independent_normals_are_summed_as_torchs():
    p = Independent(FusedNormal(draw(6, 5), draw(6, 5, seed=1).exp()), 1)
    q = Independent(Normal(torch.zeros(6, 5), torch.ones(6, 5)), 1)
    plain = Independent(Normal(p.base_dist.loc, p.base_dist.scale), 1)
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(plain, q), check_dtype=False)
    torch.testing.assert_close(p.log_prob(p.mean + 1), plain.log_prob(p.mean + 1))
