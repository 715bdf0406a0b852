"""FusedNormal in Pyro's own inference: the same losses and gradients as Pyro's Normal."""

import math

import pytest
import torch
from torch.distributions import kl_divergence

pyro = pytest.importorskip("pyro", reason="needs pyro-ppl: pip install '.[integrations]'")

import pyro.distributions as dist  # noqa: E402
from pyro.infer import (  # noqa: E402
    SVI,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

from vaefast.integrations.pyro import FusedNormal  # noqa: E402

B, D, X = 12, 4, 6


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


class Model(torch.nn.Module):
    """Pyro's VAE example, small, in float64 or float32, with either Normal in the guide."""

    def __init__(self, normal, dtype=torch.float32, events=True, prior="tensors", mask=None):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = torch.nn.Linear(X, 2 * D).to(dtype)
        self.decoder = torch.nn.Linear(D, X).to(dtype)
        self.normal, self.prior, self.mask = normal, prior, mask
        self.events = events

    def model(self, x):
        pyro.module("decoder", self.decoder)
        zero, one = x.new_zeros(len(x), D), x.new_ones(len(x), D)
        prior = {
            "tensors": lambda: dist.Normal(zero, one),
            "numbers": lambda: dist.Normal(x.new_zeros(()), x.new_ones(())).expand([len(x), D]),
            "fused": lambda: FusedNormal(zero, one),
        }[self.prior]()
        with self.plate(x):
            z = self.latent(prior)
            logits = self.decoder(z)
            if not self.events:
                logits, x = logits[:, None], x[:, None]
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with self.plate(x):
            self.latent(self.normal(loc, log_scale.exp()))

    def latent(self, fn):
        if not self.events:
            with pyro.plate("latent", D, dim=-1):
                return pyro.sample("z", fn)
        fn = fn.to_event(1)
        return pyro.sample("z", fn if self.mask is None else fn.mask(self.mask))

    def plate(self, x):
        return pyro.plate("batch", len(x), dim=-1 if self.events else -2)


class Injected:
    """Both Normals' samples from one list of noise, so that losses can be compared."""

    def __init__(self, monkeypatch):
        self.generator = torch.Generator()

        def rsample(p, sample_shape=()):
            shape = p._extended_shape(torch.Size(sample_shape))
            noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
            return p.loc + p.scale * noise.to(p.loc.dtype)

        monkeypatch.setattr(FusedNormal, "rsample", rsample)
        monkeypatch.setattr(dist.Normal, "rsample", rsample)

    def restart(self):
        self.generator.manual_seed(5)


ELBOS = {
    "trace": lambda: Trace_ELBO(),
    "trace graph": lambda: TraceGraph_ELBO(),
    "mean field": lambda: TraceMeanField_ELBO(),
    "renyi": lambda: RenyiELBO(alpha=0.5, num_particles=3),
    "particles": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "mean field particles": lambda: TraceMeanField_ELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "renyi particles": lambda: RenyiELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
}


def loss_and_gradients(elbo, **settings):
    pyro.clear_param_store()
    model = Model(**settings)
    x = torch.rand(B, X, generator=torch.Generator().manual_seed(2)).round()
    x = x.to(model.encoder.weight.dtype)
    loss = ELBOS[elbo]().loss_and_grads(model.model, model.guide, x)
    return loss, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("settings", [{}, {"prior": "numbers"}, {"prior": "fused"}, {"mask": True}])
def test_losses_and_gradients_are_those_of_pyros_normal(elbo, settings, monkeypatch):
    if settings.get("mask"):
        settings = {"mask": torch.arange(B) % 3 > 0}
    noise = Injected(monkeypatch)
    found = []
    for normal, dtype in (
        (dist.Normal, torch.float64),
        (FusedNormal, torch.float64),
        (dist.Normal, torch.float32),
        (FusedNormal, torch.float32),
    ):
        noise.restart()
        found.append(loss_and_gradients(elbo, normal=normal, dtype=dtype, **settings))
    (exact, gradients), *others = found
    for (loss, grads), near in zip(others, (1e-11, 1e-5, 1e-5), strict=True):
        assert loss == pytest.approx(exact, rel=near)
        for one, two in zip(grads, gradients, strict=True):
            torch.testing.assert_close(one.double(), two, rtol=10 * near, atol=near)


@pytest.mark.parametrize("elbo", ["trace", "mean field"])
def test_without_events_too(elbo, monkeypatch):
    noise, found = Injected(monkeypatch), []
    for normal in (dist.Normal, FusedNormal):
        noise.restart()
        found.append(loss_and_gradients(elbo, normal=normal, dtype=torch.float64, events=False))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("elbo", [*ELBOS, "jit"])
def test_it_trains(elbo):
    torch.manual_seed(0)
    x = (torch.rand(64, 1) < 0.5).float().expand(64, X).contiguous()
    model = Model(FusedNormal)
    make = ELBOS.get(elbo, lambda: JitTraceMeanField_ELBO(ignore_jit_warnings=True))
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.05}), make())
    # What jit has traced is slow: vaefast goes to plain PyTorch under a tracer.
    steps = 4 if elbo == "jit" else 40
    losses = [svi.step(x) for _ in range(steps)]
    assert all(map(math.isfinite, losses))
    assert steps < 40 or sum(losses[-10:]) < 0.85 * sum(losses[:10])


def pair(*shape):
    loc, scale = torch.randn(shape), torch.rand(shape) + 0.2
    return FusedNormal(loc, scale), dist.Normal(loc, scale)


@pytest.mark.parametrize("events", [None, 0, 1, 2, 3])
def test_to_event_is_pyros(events):
    ours, theirs = (p.to_event(events) for p in pair(2, 3, 4))
    assert ours.batch_shape == theirs.batch_shape
    assert ours.event_shape == theirs.event_shape
    assert isinstance(ours, dist.Normal if events == 0 else dist.Independent)
    z = theirs.sample((5,))
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    for extra in (-1, 0, 1):
        if 0 <= len(theirs.event_shape) + extra <= 3:
            assert ours.to_event(extra).event_shape == theirs.to_event(extra).event_shape
    assert ours.to_event(None).event_shape == (2, 3, 4)
    with pytest.raises(ValueError):
        ours.to_event(-4)


def test_shapes_calls_and_masks_are_pyros():
    ours, theirs = (p.to_event(1) for p in pair(3, 4))
    assert ours().shape == theirs().shape == (3, 4)
    assert ours((2,)).shape == (2, 3, 4)
    assert ours.shape((2,)) == theirs.shape((2,))
    assert ours.rsample().requires_grad is False
    wide = ours.expand([5, 3])
    assert type(wide) is type(ours)
    assert wide.batch_shape == (5, 3)
    assert ours.expand_by([5]).batch_shape == (5, 3)
    z = theirs.expand([5, 3]).sample()
    torch.testing.assert_close(wide.log_prob(z), theirs.expand([5, 3]).log_prob(z))
    assert wide.sample().unique().numel() == 60
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(ours.mask(mask).log_prob(z), theirs.mask(mask).log_prob(z))
    assert not ours.mask(False).log_prob(z).any()
    assert type(pair(3)[0].expand([2, 3])) is FusedNormal
    assert FusedNormal(0.0, 1.0).to_event(0).batch_shape == ()


@pytest.mark.parametrize("events", [0, 1, 2])
@pytest.mark.parametrize("other", ["same", "row", "fused", "numbers", "masked"])
def test_kls_are_pyros(events, other):
    torch.manual_seed(2)
    ours, theirs = (p.to_event(events) for p in pair(3, 5, 4))
    loc, scale = torch.randn(3, 5, 4), torch.rand(3, 5, 4) + 0.5
    q = {
        "same": lambda: dist.Normal(loc, scale),
        "row": lambda: dist.Normal(loc[:1, :1], scale[:1, :1]).expand([3, 5, 4]),
        "fused": lambda: FusedNormal(loc, scale),
        "numbers": lambda: dist.Normal(0.0, 2.0).expand([3, 5, 4]),
        "masked": lambda: dist.Normal(loc, scale),
    }[other]().to_event(events)
    if other == "masked":
        mask = torch.arange(3) > 0 if events == 2 else torch.tensor(True)
        ours, theirs, q = (p.mask(mask) for p in (ours, theirs, q))
    torch.testing.assert_close(kl_divergence(ours, q), kl_divergence(theirs, q))
    torch.testing.assert_close(kl_divergence(q, ours), kl_divergence(q, theirs))


def test_kl_to_a_full_covariance_is_pyros():
    ours, theirs = (p.to_event(1) for p in pair(3, 4))
    q = dist.MultivariateNormal(torch.randn(4), torch.eye(4) + 0.1)
    torch.testing.assert_close(kl_divergence(ours, q), kl_divergence(theirs, q))


def test_pyros_seed_governs_the_noise():
    p = pair(3, 4)[0]
    pyro.set_rng_seed(7)
    first = p()
    pyro.set_rng_seed(7)
    assert torch.equal(first, p())
