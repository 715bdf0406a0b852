"""The fast path: a call by a plan that is found gives the bits of one that makes it, and goes so
only where that is right."""

import random

import likelihood_cases
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import vaefast as vf
from vaefast.ops import _plans

pytestmark = pytest.mark.skipif(
    "native" not in vf.available_backends(), reason="the reference makes no plans"
)


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """Whether each call found a plan; none is left over."""
    log = []

    class Counted(dict):
        looks = None

        def get(self, key):
            plan = super().get(key)
            log.append(plan is not None)
            return plan

    monkeypatch.setattr(_plans, "kept", Counted())
    with vf.backend("native"):
        yield log


def both_ways(call, leaves, found, upstream=torch.randn_like):
    """Outputs and gradients by the slow path and then by the fast one."""
    results = []
    for expected in (False, True):
        torch.manual_seed(3)
        outputs = call()
        assert found[-1] is expected
        torch.manual_seed(4)
        grads = torch.autograd.grad(outputs, leaves, [upstream(o) for o in outputs])
        results.append([*outputs, *grads])
    for slow, fast in zip(*results, strict=True):
        assert torch.equal(slow, fast) and slow.stride() == fast.stride()
    return results[1]


def leaves(*shape, dtype=torch.float32):
    return [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(2)]


SETTINGS = [
    {},
    {"reduction": "batchmean"},
    {"reduction": "mean"},
    {"reduction": "sum", "temperature": 0.7},
    {"param": "softplus", "min_std": 0.1},
    {"clamp": (-1.0, 0.5)},
    {"clamp": "soft", "offset": 8},
    {"offset": 3},
    {"seed": 5},
    {"seed": torch.tensor([5, 2])},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(7, 13), (4, 3, 5, 5), (41,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_kl(found, settings, shape, dtype):
    pair = leaves(*shape, dtype=dtype)
    both_ways(lambda: vf.sample_kl(*pair, **settings), pair, found)
    # The upstream gradient of a sum is expanded.
    both = torch.randn(shape[0], 2 * shape[-1], dtype=dtype).requires_grad_()
    both_ways(
        lambda: vf.sample_kl(*both.chunk(2, 1), **settings),
        (both,),
        found,
        lambda o: torch.tensor(1.5, dtype=dtype).expand(o.shape),
    )


@pytest.mark.parametrize("settings", [s for s in SETTINGS if "reduction" not in s], ids=str)
@pytest.mark.parametrize("shape", [(7, 13), (4, 3, 5, 5), (41,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rsample(found, settings, shape, dtype):
    pair = leaves(*shape, dtype=dtype)
    both_ways(lambda: (vf.rsample(*pair, **settings),), pair, found)
    both = torch.randn(shape[0], 2 * shape[-1], dtype=dtype).requires_grad_()
    both_ways(
        lambda: (vf.rsample(*both.chunk(2, 1), **settings),),
        (both,),
        found,
        lambda o: torch.tensor(1.5, dtype=dtype).expand(o.shape),
    )
    # The same sample as with its KL.
    seeded = {**settings, "seed": 1}
    torch.testing.assert_close(vf.rsample(*pair, **seeded), vf.sample_kl(*pair, **seeded)[0])


@pytest.mark.parametrize("operator", [vf.rsample, lambda *a, **k: vf.sample_kl(*a, **k)[0]])
def test_generators_are_drawn_from_once(found, operator):
    """Once each, by a plan made or found."""
    pair = leaves(2, 7)
    samples = []
    for _ in range(2):
        generators = [torch.Generator().manual_seed(seed) for seed in (6, 7)]
        samples.append(operator(*pair, generator=generators))
    assert torch.equal(*samples)
    single = operator(*pair, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(single[0], samples[0][0])


def test_gradients_of_a_sample(found):
    pair = leaves(5, 7, dtype=torch.float64)
    for _ in range(2):
        z = vf.rsample(*pair, seed=1)
    assert found[-1]
    upstream = torch.randn_like(z)
    first = torch.autograd.grad(z, pair, upstream, retain_graph=True)
    again = torch.autograd.grad(z, pair, upstream, retain_graph=True)
    last = torch.autograd.grad(z, pair, upstream)
    assert all(torch.equal(a, b) for a, b in zip(first + first, again + last, strict=True))
    made = torch.autograd.grad(vf.rsample(*pair, seed=1).sum(), pair, create_graph=True)
    (second,) = torch.autograd.grad(made[1].sum(), pair[1])
    torch.testing.assert_close(second, 0.25 * (z - pair[0]))
    with torch.no_grad():
        assert torch.equal(vf.rsample(*pair, seed=1), z)
    # Of one of the two alone.
    half = vf.rsample(pair[0].detach(), pair[1], seed=1)
    torch.testing.assert_close(torch.autograd.grad(half, pair[1], upstream)[0], first[1])


def test_what_a_transform_left_behind_goes_the_slow_path(found):
    """A wrapper of torch.func's whose level has ended."""
    left = []

    def leak(x):
        left.append(x * 1.0)
        return x.sum()

    torch.func.grad(leak)(torch.randn(5, 7))
    logvar = torch.randn(5, 7).requires_grad_()
    for _ in range(2):
        want = vf.sample_kl(torch.randn(5, 7), logvar, seed=1)
        z, kl = vf.sample_kl(left[0], logvar, seed=1)
        assert not found[-1]
    assert z.shape == want[0].shape and kl.grad_fn is not None


@pytest.mark.parametrize("operator", [vf.rsample, vf.sample_kl])
def test_a_drawn_seed_is_the_state_of_the_slow_path(found, operator):
    """In every backward: kept, retained, and one to be differentiated again."""
    pair = leaves(5, 7, dtype=torch.float64)

    def gradients():
        made = []
        for how in ({}, {"retain_graph": True}, {"create_graph": True}):
            torch.manual_seed(3)
            outputs = operator(*pair)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            made += outputs
            made += torch.autograd.grad([o.square().sum() for o in outputs], pair, **how)
        return [t.detach() for t in made], float(torch.rand(()))

    torch.manual_seed(3)
    operator(*pair)
    fast, after = gradients()
    assert found[-1]
    with vf.backend("reference"):
        slow, after_slow = gradients()
    assert not found[-1] and after == after_slow
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


def elbo(mean, other, **settings):
    """The likelihood of `mean`, and a KL made of `other`."""
    settings = {"likelihood": "gaussian", "kl": other.square().sum(1), **settings}
    return vf.elbo_loss(mean, torch.ones_like(mean), **settings)


OPERATORS = {
    "rsample": lambda mu, logvar: vf.rsample(mu, logvar),
    "sample_kl": lambda mu, logvar: vf.sample_kl(mu, logvar, reduction="sum")[1],
    "gaussian_kl": lambda mu, logvar: vf.gaussian_kl(mu, logvar),
    "nll": lambda mu, logvar: vf.nll((mu, logvar), torch.ones(5, 7), "gaussian"),
    "nll of one": lambda mu, logvar: vf.nll((mu, logvar.detach()), torch.ones(5, 7), "gaussian"),
    "elbo_loss": lambda mu, logvar: elbo(mu, logvar, beta=2).loss,
    "elbo_loss, learned scalar": lambda mu, logvar: (
        elbo(mu, logvar, likelihood=vf.Gaussian(logvar.mean().exp())).loss
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_checkpointing_goes_the_slow_path(found, name):
    """Forward and again: its hooks see what autograd saves, which may not be written over."""

    def gradients(run):
        _plans.kept.clear()
        torch.manual_seed(2)
        mu, logvar = torch.randn(5, 7).requires_grad_(), torch.randn(5, 7).requires_grad_()
        (3.0 * run(mu, logvar)).sum().backward()
        return mu.grad, logvar.grad

    want = gradients(OPERATORS[name])
    found.clear()
    got = gradients(lambda *pair: checkpoint(OPERATORS[name], *pair, use_reentrant=False))
    assert not any(found)
    for a, b in zip(got, want, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("reduction", ["sample", "batchmean", "sum", "mean"])
@pytest.mark.parametrize("settings", [{}, {"param": "std"}, {"clamp": (-1.0, 0.5)}], ids=str)
@pytest.mark.parametrize("shape", [(7, 13), (4, 3, 5, 5), (41,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_kl(found, settings, shape, dtype, reduction):
    mu, scale = leaves(*shape, dtype=dtype)
    if "param" in settings:
        scale = scale.detach().exp().requires_grad_()
    settings = {**settings, "reduction": reduction}
    both_ways(lambda: (vf.gaussian_kl(mu, scale, **settings),), (mu, scale), found)
    with pytest.raises(ValueError, match="free_bits_per"):
        vf.gaussian_kl(mu, scale, **settings, free_bits_per="element")
    halves = torch.randn(shape[0], 2 * shape[-1], dtype=dtype).exp().requires_grad_()
    both_ways(
        lambda: (vf.gaussian_kl(*halves.chunk(2, 1), **settings),),
        (halves,),
        found,
        lambda o: torch.tensor(1.5, dtype=dtype).expand(o.shape),
    )


def test_second_gradients_of_the_kl(found):
    mu, logvar = leaves(5, 7, dtype=torch.float64)
    vf.gaussian_kl(mu, logvar)
    kl = vf.gaussian_kl(mu, logvar, reduction="batchmean")
    assert found[-1]
    (first,) = torch.autograd.grad(kl, logvar, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), logvar)
    torch.testing.assert_close(second, 0.1 * logvar.exp())
    # Of one of the two alone.
    kl = vf.gaussian_kl(mu.detach(), logvar)
    assert found[-1]
    torch.testing.assert_close(torch.autograd.grad(kl, logvar)[0], first.detach())


@pytest.mark.parametrize("case", likelihood_cases.ALL, ids=str)
@pytest.mark.parametrize("reduction", ["sample", "batchmean", "sum", "mean"])
def test_nll(found, case, reduction):
    rng = random.Random(1)
    params = tuple(p.float().requires_grad_() for p in case.params((6, 11), rng))
    target, model = case.target((6, 11), rng).float(), case.build()

    def call():
        return (vf.nll(params, target, model, reduction=reduction),)

    call()
    call()
    if found[-1]:
        _plans.kept.clear()
        both_ways(call, params, found)
    else:
        assert case.scalar is not None


@pytest.mark.parametrize("kind", [vf.Gaussian, vf.Laplace])
@pytest.mark.parametrize("reduction", ["sample", "batchmean", "mean"])
def test_a_learned_scalar(found, kind, reduction):
    """The likelihood is made anew at every step, around another tensor."""
    mean, target = torch.randn(5, 7).requires_grad_(), torch.randn(5, 7)
    log_scale = torch.tensor(0.3).requires_grad_()

    def call():
        return (vf.nll(mean, target, kind(log_scale.exp()), reduction=reduction),)

    for upstream in (torch.randn_like, torch.ones_like):
        _plans.kept.clear()
        both_ways(call, (mean, log_scale), found, upstream)
    (loss,) = call()
    assert found[-1]
    first = torch.autograd.grad(loss.sum(), log_scale, create_graph=True)[0]
    (second,) = torch.autograd.grad(first, log_scale)
    with vf.backend("reference"):
        want = torch.autograd.grad(call()[0].sum(), log_scale, create_graph=True)[0]
    assert not found[-1]
    torch.testing.assert_close(first, want)
    torch.testing.assert_close(second, torch.autograd.grad(want, log_scale)[0])
    # A scalar with a dimension of its own has another gradient's shape.
    for _ in range(2):
        vf.nll(mean, target, kind(log_scale.exp().view(1)))
        assert not found[-1]


@pytest.mark.parametrize("beta", [1, 0.0, 2.5])
@pytest.mark.parametrize("inside", [False, True], ids=["kl", "mu, scale"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elbo_loss(found, beta, inside, dtype):
    mean, target = torch.randn(5, 11, dtype=dtype).requires_grad_(), torch.randn(5, 11).to(dtype)
    mu, logvar = leaves(5, 7, dtype=dtype)
    log_std = torch.tensor(0.3, dtype=dtype).requires_grad_()

    def call():
        posterior = (mu, logvar) if inside else ()
        kl = None if inside else vf.sample_kl(mu, logvar, seed=1)[1]
        model = vf.Gaussian(log_std.exp())
        return vf.elbo_loss(mean, target, *posterior, kl=kl, likelihood=model, beta=beta)

    parameters = (mean, mu, logvar, log_std)
    for upstream in (torch.randn_like, torch.ones_like):
        _plans.kept.clear()
        both_ways(lambda: (call().loss,), parameters, found, upstream)
    fast = call()
    assert found[-1] and fast.loss.requires_grad
    assert not fast.nll.requires_grad and not fast.kl.requires_grad
    with torch.no_grad():
        quiet = call()
    assert found[-1] and not quiet.loss.requires_grad
    second = torch.autograd.grad(fast.loss, parameters, create_graph=True)
    with vf.backend("reference"):
        slow = call()
        wanted = torch.autograd.grad(slow.loss, parameters, create_graph=True)
    for a, b, c in zip(fast, slow, quiet, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    for a, b in zip(second, wanted, strict=True):
        torch.testing.assert_close(a, b)
    # Of mean squared error over std: the mixed derivative.
    torch.testing.assert_close(
        torch.autograd.grad(second[0].sum(), log_std)[0],
        torch.autograd.grad(wanted[0].sum(), log_std)[0],
    )


def test_elbo_loss_without_a_gradient_of_the_decoder(found):
    logits, target = torch.zeros(5, 11), torch.ones(5, 11)
    kl = torch.rand(5).requires_grad_()
    for _ in range(2):
        loss = vf.elbo_loss(logits, target, kl=kl, likelihood="bernoulli", beta=2.0).loss
        torch.testing.assert_close(torch.autograd.grad(loss, kl)[0], torch.full((5,), 0.4))
    assert found[-1]
    for other in ({"mask": target > 0}, {"reduction": "sum"}, {"validate": True}, {"capacity": 1}):
        vf.elbo_loss(logits, target, kl=kl, likelihood="bernoulli", **other)
    with pytest.raises(ValueError, match="kl must be one value per sample"):
        vf.elbo_loss(logits, target, kl=kl[:4], likelihood="bernoulli")
    with pytest.raises(ValueError, match="support"):
        vf.elbo_loss(logits, target + 1, kl=kl, likelihood="bernoulli", validate=True)


def test_likelihoods_of_equal_settings_share_a_plan(found):
    mean, target = torch.randn(5, 7), torch.randn(5, 7)
    losses = [vf.nll(mean, target, vf.Gaussian(std=std)) for std in (0.5, 0.5, 2.0, 2.0)]
    assert found == [False, True, False, True]
    assert losses[0] == losses[1] and losses[2] == losses[3] and losses[0] != losses[2]


def test_second_gradients_and_retained_graphs(found):
    pair = leaves(5, 7, dtype=torch.float64)
    vf.sample_kl(*pair)
    z, kl = vf.sample_kl(*pair)
    assert found[-1]
    loss = (z.square().sum(1) * kl).sum()
    first = torch.autograd.grad(loss, pair, retain_graph=True)
    again = torch.autograd.grad(loss, pair, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    made = torch.autograd.grad(kl.sum(), pair, create_graph=True)
    (second,) = torch.autograd.grad(made[1].sum(), pair[1])
    torch.testing.assert_close(second, 0.5 * pair[1].exp())


@pytest.mark.parametrize("index", [0, 1])
def test_a_gradient_of_one_output(found, index):
    pair = leaves(5, 7)
    grads = []
    for _ in range(2):
        output = vf.sample_kl(*pair, seed=1)[index]
        grads.append(torch.autograd.grad(output.sum(), pair))
    assert found == [False, True]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_parameters_and_inference(found):
    pair = [nn.Parameter(t.detach()) for t in leaves(5, 7)]
    vf.sample_kl(*pair)
    z, kl = vf.sample_kl(*pair)
    assert found[-1] and z.requires_grad and kl.requires_grad
    with torch.no_grad():
        assert not vf.sample_kl(*pair)[0].requires_grad
    pair[0].requires_grad_(False)
    assert vf.sample_kl(*pair, seed=1)[0].requires_grad


def test_what_looks_alike_goes_the_slow_path(found):
    mu, logvar = (t.detach() for t in leaves(5, 7))
    vf.sample_kl(mu, logvar)
    want = vf.sample_kl(mu, logvar, seed=1)
    assert found[-1]
    negated = torch._neg_view(torch.neg(mu))
    for same in (negated, mu.as_subclass(Shown)):
        got = vf.sample_kl(same, logvar, seed=1)
        assert not found[-1]
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    with vf.backend("reference"):
        vf.sample_kl(mu, logvar)
        assert not found[-1]
    per_sample = vf.sample_kl(mu, logvar, seed=[1, 2, 3, 4, 5])[0]
    assert torch.equal(per_sample[0], want[0][0]) and not torch.equal(per_sample[1], want[0][1])
    for bad in (logvar[:4], logvar.long(), logvar.double()[:, :6], "logvar"):
        with pytest.raises((TypeError, ValueError), match="scale"):
            vf.sample_kl(mu, bad)
    vf.sample_kl(mu, logvar, clamp=[-1.0, 1.0])
    assert not found[-1]


class Shown(torch.Tensor):
    """A subclass, whose dispatcher might do anything."""


def test_validation_is_not_skipped(found):
    logits, target = torch.zeros(3, 4), torch.zeros(3, 4)
    for _ in range(2):
        vf.nll(logits, target, "bernoulli", validate=True)
    assert found == [False, True]
    with pytest.raises(ValueError, match="support"):
        vf.nll(logits, target - 1, "bernoulli", validate=True)


def test_a_changed_input_is_read_anew(found):
    logits, target = torch.zeros(3, 4, requires_grad=True), torch.ones(3, 4)
    first = vf.nll(logits, target, "bernoulli")
    with torch.no_grad():
        logits += 1
    second = vf.nll(logits, target, "bernoulli")
    assert found[-1] and second < first


def test_plans_do_not_grow_without_bound(found, monkeypatch):
    monkeypatch.setattr(_plans, "LIMIT", 3)
    for width in range(1, 9):
        vf.sample_kl(torch.zeros(2, width), torch.zeros(2, width))
    assert len(_plans.kept) <= 3
