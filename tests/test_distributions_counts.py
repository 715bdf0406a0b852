"""Distributions of counts: float64 formulas, scvi-tools' conventions, torch's interface."""

import pytest
import torch
from torch.distributions import Independent, constraints, kl_divergence
from torch.distributions import NegativeBinomial as TorchNegativeBinomial

from vaefast.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

KINDS = (Poisson, NegativeBinomial, ZeroInflatedNegativeBinomial)


def draw(*shape, seed=0, low=0.05, high=6.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def made(kind, mu, theta, pi, **settings):
    if kind is Poisson:
        return Poisson(mu)
    if kind is NegativeBinomial:
        return NegativeBinomial(mu=mu, theta=theta, **settings)
    return ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi, **settings)


def formula(kind, x, mu, theta, pi, eps=0.0):
    """log p in the dtype of its arguments, with scvi-tools' eps wherever it puts one."""
    if kind is Poisson:
        return torch.xlogy(x, mu) - mu - torch.lgamma(x + 1)
    both = torch.log(theta + mu + eps)
    none = theta * (torch.log(theta + eps) - both)
    counts = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    log_nb = none + torch.xlogy(x, mu + eps) - x * both + counts
    if kind is NegativeBinomial:
        return log_nb
    keep, lose = torch.nn.functional.logsigmoid(-pi), torch.nn.functional.logsigmoid(pi)
    return torch.where(x == 0, torch.logaddexp(lose, keep + none), keep + log_nb)


# Shapes of value, mu, theta and zi_logits.
SHAPES = {
    "plain": ((5, 7), (5, 7), (5, 7), (5, 7)),
    "theta per gene": ((5, 7), (5, 7), (7,), (5, 7)),
    "samples": ((5, 7), (3, 5, 7), (7,), (3, 5, 7)),
    "many samples": ((5, 7), (2, 3, 5, 7), (5, 7), (7,)),
    "wide value": ((4, 5, 7), (5, 7), (7,), (5, 1)),
    "crossed": ((4, 1), (1, 6), (6,), (1, 1)),
    "scalar value": ((), (5, 7), (7,), (5, 7)),
    "scalars": ((), (), (), ()),
    "vector": ((9,), (9,), (), ()),
    "empty": ((0, 7), (0, 7), (7,), (0, 7)),
    "no genes": ((5, 0), (5, 0), (0,), (5, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_prob_and_gradients_are_the_formulas(kind, case, dtype):
    x, mu, theta, pi = (draw(*shape, seed=i) for i, shape in enumerate(SHAPES[case]))
    x, pi = torch.floor(x), pi - 3
    wanted_params = [t.requires_grad_() for t in (mu, theta, pi)]
    params = [t.detach().to(dtype).requires_grad_() for t in wanted_params]
    got = made(kind, *params).log_prob(x.to(dtype))
    want = formula(kind, x, *wanted_params, eps=1e-8)
    assert got.dtype == dtype
    assert got.shape == torch.broadcast_shapes(x.shape, made(kind, *params).batch_shape)
    tight = {"rtol": 1e-10, "atol": 2e-8}
    tolerance = tight if dtype == torch.float64 else {"rtol": 3e-6, "atol": 3e-6}
    torch.testing.assert_close(got.double(), want.expand(got.shape), **tolerance)
    weight = draw(*got.shape, seed=9)
    used = {Poisson: 1, NegativeBinomial: 2, ZeroInflatedNegativeBinomial: 3}[kind]
    got_grads = torch.autograd.grad((got * weight.to(dtype)).sum(), params[:used])
    want_grads = torch.autograd.grad((want * weight).sum(), wanted_params[:used])
    for one, two in zip(got_grads, want_grads, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), two, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool])
def test_counts_may_be_integers(kind, dtype):
    mu, theta, pi = draw(4, 3), draw(3, seed=1), draw(4, 3, seed=2)
    x = torch.floor(draw(4, 3, seed=3)).to(dtype)
    got = made(kind, mu, theta, pi).log_prob(x)
    torch.testing.assert_close(got, made(kind, mu, theta, pi).log_prob(x.double()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind, dtype):
    params = [t.to(dtype) for t in (draw(6, 4), draw(4, seed=1), draw(6, 4, seed=2) - 3)]
    x = torch.floor(draw(6, 4, seed=3))
    got = made(kind, *params).log_prob(x.float())
    assert got.dtype == torch.float32
    want = formula(kind, x, *(p.double() for p in params))
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_mean_of_zero_beside_a_count_costs_what_it_does_in_scvi(kind, dtype):
    mu = torch.tensor([0.0, 0.0, 1e-9, 0.5]).to(dtype).requires_grad_()
    theta, pi = torch.tensor([2.0, 0.25, 3.0, 1.0]).to(dtype), torch.zeros(4, dtype=dtype)
    x = torch.tensor([7.0, 0.0, 2.0, 1.0]).to(dtype)
    got = made(kind, mu, theta, pi).log_prob(x)
    double = mu.detach().double().requires_grad_()
    want = formula(kind, x.double(), double, theta.double(), pi.double(), eps=1e-8)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    if dtype != torch.float16:
        torch.testing.assert_close(
            torch.autograd.grad(got.sum(), mu)[0].double(),
            torch.autograd.grad(want.sum(), double)[0],
            rtol=1e-5,
            atol=1e-5,
        )
    bare = made(kind, mu, theta, pi, eps=0.0).log_prob(x)
    assert bare[0] == -torch.inf
    assert torch.isfinite(bare[3])
    nearer = made(kind, mu.float(), theta.float(), pi.float(), eps=1e-4).log_prob(x.float())
    assert nearer[0] > got[0]


def test_scvis_eps_beside_theta_is_not_missed():
    """theta log1p(eps / theta) is at most eps."""
    theta = torch.tensor([1e-6, 1e-3, 1.0, 1e4], dtype=torch.float64)
    mu, x = torch.full_like(theta, 2.0), torch.tensor([0.0, 1.0, 5.0, 3.0], dtype=torch.float64)
    got = NegativeBinomial(mu=mu, theta=theta).log_prob(x)
    want = formula(NegativeBinomial, x, mu, theta, None, eps=1e-8)
    torch.testing.assert_close(got, want, rtol=0, atol=3e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_variance_are_the_masses(kind):
    mu, theta, pi = draw(3, high=3.0), draw(3, seed=1, low=0.8), draw(3, seed=2) - 3
    p = made(kind, mu, theta, pi)
    x = torch.arange(800, dtype=torch.float64)[:, None]
    mass = torch.exp(p.log_prob(x))
    torch.testing.assert_close(mass.sum(0), torch.ones_like(mu), rtol=0, atol=1e-6)
    mean = (x * mass).sum(0)
    torch.testing.assert_close(p.mean, mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(p.variance, ((x - mean) ** 2 * mass).sum(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(p.stddev, p.variance.sqrt())


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_these_moments(kind):
    mu = torch.tensor([0.5, 4.0, 40.0, 0.0], requires_grad=True)
    theta, pi = torch.tensor([0.7, 2.0, 50.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0, 0.0])
    p = made(kind, mu, theta, pi)
    x = p.sample((20_000,))
    assert x.shape == (20_000, 4)
    assert x.dtype == torch.float32
    assert not x.requires_grad
    assert constraints.nonnegative_integer.check(x).all()
    assert not x[:, 3].any()
    error = torch.sqrt(p.variance / 20_000)
    assert ((x.mean(0) - p.mean).abs() <= 6 * error).all()
    torch.testing.assert_close(x.var(0), p.variance, rtol=0.15, atol=0.01)
    assert p.sample().shape == (4,)
    assert p.sample((2, 3)).shape == (2, 3, 4)
    torch.manual_seed(3)
    first = p.sample((5,))
    torch.manual_seed(3)
    assert torch.equal(first, p.sample((5,)))


@pytest.mark.parametrize("settings", [{"probs": 0.3}, {"logits": -0.4}])
def test_a_total_count_is_torchs(settings):
    value = {k: torch.tensor([v, v / 2]) for k, v in settings.items()}
    count = torch.tensor(5)
    ours = NegativeBinomial(count, **value)
    theirs = TorchNegativeBinomial(count, **value)
    x = torch.tensor([3.0, 0.0])
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    torch.testing.assert_close(ours.scale, ours.mu / ours.mu.sum())
    inflated = ZeroInflatedNegativeBinomial(count, zi_logits=torch.zeros(3, 1), **value)
    assert inflated.batch_shape == (3, 2)
    torch.testing.assert_close(inflated.scale, ours.scale.expand(3, 2))
    torch.testing.assert_close(inflated.mean, ours.mean.expand(3, 2) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_distribution_of_torch(kind):
    mu, theta, pi = draw(5, 7), draw(7, seed=1), draw(5, 7, seed=2)
    p = made(kind, mu, theta, pi)
    x = torch.floor(draw(5, 7, seed=3))
    assert p.batch_shape == (5, 7)
    assert p.event_shape == ()
    assert not p.has_rsample
    assert p.support is constraints.nonnegative_integer
    assert repr(p).startswith(kind.__name__ + "(")
    whole = Independent(p, 1)
    torch.testing.assert_close(whole.log_prob(x), p.log_prob(x).sum(-1))
    wide = p.expand((3, 5, 7))
    assert type(wide) is kind
    assert wide.batch_shape == (3, 5, 7)
    assert wide.sample().shape == (3, 5, 7)
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x).expand(3, 5, 7))
    torch.testing.assert_close(wide.mean, p.mean.expand(3, 5, 7))


def test_scale_is_kept_for_scvis_get_normalized():
    mu, theta, scale = torch.full((2, 3), 2.0), torch.ones(3), torch.full((2, 3), 0.5)
    for p in (
        Poisson(mu, scale=scale),
        NegativeBinomial(mu=mu, theta=theta, scale=scale),
        ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=mu, scale=scale),
    ):
        assert p.get_normalized("mu") is not None
        torch.testing.assert_close(p.get_normalized("mu"), mu)
        assert p.get_normalized("scale") is scale
        torch.testing.assert_close(p.expand((4, 2, 3)).get_normalized("scale")[1], scale)
        with pytest.raises(ValueError, match="key must be one of 'mu', 'scale', got 'x'"):
            p.get_normalized("x")


def test_poissons_have_torchs_kl():
    p, q = Poisson(draw(4)), Poisson(draw(4, seed=1))
    want = q.rate - p.rate + p.rate * torch.log(p.rate / q.rate)
    torch.testing.assert_close(kl_divergence(p, q), want)
    assert float(Poisson(torch.tensor(0.0)).log_prob(torch.tensor(0.0))) == 0
    assert float(Poisson(torch.tensor(0.0)).log_prob(torch.tensor(2.0))) == -torch.inf


def test_what_is_no_parameter_or_count_is_refused_where_asked():
    one = torch.ones(3)
    for kind in KINDS[1:]:
        for mu, theta in ((-one, one), (one, 0 * one), (one, -one)):
            with pytest.raises(ValueError, match="Expected parameter"):
                made(kind, mu, theta, one, validate_args=True)
        made(kind, -one, one, one)
        p = made(kind, one, one, one, validate_args=True)
        with pytest.raises(ValueError, match="within the support"):
            p.log_prob(0.5 * one)
        with pytest.raises(ValueError, match="within the support"):
            p.expand((2, 3)).log_prob(-one)
        made(kind, one, one, one).log_prob(0.5 * one)
    with pytest.raises(ValueError, match="within the support"):
        Poisson(one, validate_args=True).log_prob(-one)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "got neither"),
        ({"mu": 1.0, "theta": 1.0, "total_count": 2.0}, "got both"),
        ({"mu": 1.0}, "mu takes theta"),
        ({"mu": 1.0, "theta": 1.0, "logits": 0.0}, "neither probs nor logits"),
        ({"total_count": 1.0}, "one of probs and logits"),
        ({"total_count": 1.0, "probs": 0.5, "logits": 0.0}, "one of probs and logits"),
        ({"total_count": 1.0, "probs": 0.5, "theta": 1.0}, "no theta"),
        ({"mu": 1.0, "theta": 1.0, "eps": -1.0}, r"eps must be in \[0, 1\), got -1"),
    ],
)
def test_half_a_parameterization_is_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        NegativeBinomial(**arguments)
    with pytest.raises(ValueError, match=text):
        ZeroInflatedNegativeBinomial(zi_logits=0.0, **arguments)


def test_zero_inflation_needs_its_logits():
    with pytest.raises(ValueError, match="zi_logits must be given"):
        ZeroInflatedNegativeBinomial(mu=1.0, theta=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_and_second_derivatives(kind):
    mu, theta, pi = draw(4, 3), draw(3, seed=1), draw(4, 3, seed=2) - 3
    x = torch.floor(draw(4, 3, seed=3))

    def log_p(mu, x):
        return made(kind, mu, theta, pi[0]).log_prob(x)

    each = torch.func.vmap(log_p)(mu, x)
    together = torch.stack([log_p(m, v) for m, v in zip(mu, x, strict=True)])
    torch.testing.assert_close(each, together)
    one = mu.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda m: log_p(m, x), (one,))


@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_whole(kind):
    mu, theta, pi = (draw(6, 3, seed=i).float() for i in range(3))
    x = torch.floor(draw(6, 3, seed=3)).float()

    def loss(mu, theta, pi, x):
        return made(kind, mu, theta, pi).log_prob(x).sum(-1)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(mu, theta, pi, x), loss(mu, theta, pi, x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_gradients_per_element_are_made_once_and_kept_while_the_graph_is(kind, dtype):
    mu, theta, pi = draw(6, 5), draw(6, 5, seed=1), draw(6, 5, seed=2) - 3
    params = [t.to(dtype).requires_grad_() for t in (mu, theta, pi)]
    used = params[: {Poisson: 1, NegativeBinomial: 2, ZeroInflatedNegativeBinomial: 3}[kind]]
    x = torch.floor(draw(6, 5, seed=3))
    log_p = made(kind, *params).log_prob(x)
    exact = [p.detach().double().requires_grad_() for p in params]
    want = formula(kind, x, *exact, eps=1e-8)
    for upstream in (draw(6, 5, seed=4), draw(6, 1, seed=5).expand(6, 5), draw(5, 6, seed=6).T):
        got = torch.autograd.grad(log_p, used, upstream.to(log_p.dtype), retain_graph=True)
        again = torch.autograd.grad(log_p, used, upstream.to(log_p.dtype), retain_graph=True)
        true = torch.autograd.grad(want, exact[: len(used)], upstream, retain_graph=True)
        for one, two, truth in zip(got, again, true, strict=True):
            assert torch.equal(one, two)
            assert one.dtype == dtype
            near = 2e-3 if dtype == torch.float16 else 2e-5
            torch.testing.assert_close(one.double(), truth, rtol=near, atol=near)
    last = torch.autograd.grad(log_p, used, upstream.to(log_p.dtype))
    assert all(map(torch.equal, last, got))
