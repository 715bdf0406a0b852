"""`sample_kl(estimator="monte_carlo")`: samples and log q(z|x) - log p(z) at each, against float64
and torch.distributions."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import vaefast as vf

# The number of samples (0: no dimension of it), then mu's shape.
SHAPES = [
    (0, (1, 1)),
    (0, (41, 7)),
    (3, (41, 7)),
    (5, (2, 1271)),
    (2, (3, 4, 5)),
    (65, (17, 50)),
    (4, (6,)),
]
PRIORS = ["", "full", "shared", "mean", "spread"]
NAMES = ("mu", "scale", "prior_mu", "prior_scale")


class Case(NamedTuple):
    tensors: dict[str, Tensor]
    noise: Tensor
    upstream: tuple[Tensor, Tensor]

    @property
    def num_samples(self) -> int | None:
        return len(self.noise) if self.noise.dim() > self.tensors["mu"].dim() else None


def case(target, samples, shape, prior="", dtype=torch.float64) -> Case:
    generator = torch.Generator().manual_seed(samples + sum(shape))

    def normal(*size):
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        return values.to(target.device, dtype)

    sizes = {"mu": shape, "scale": shape}
    if prior in ("full", "shared", "mean"):
        sizes["prior_mu"] = shape if prior == "full" else shape[1:]
    if prior in ("full", "shared", "spread"):
        sizes["prior_scale"] = shape if prior == "full" else shape[1:]
    tensors = {name: normal(*size).requires_grad_() for name, size in sizes.items()}
    lead = (samples,) if samples else ()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return Case(
        tensors, normal(*lead, *shape), (normal(*lead, *shape), normal(*lead, *shape[:1]).to(wide))
    )


def ours(given: Case, tensors=None, **settings) -> tuple[Tensor, Tensor]:
    tensors = dict(tensors or given.tensors)
    mu, scale = tensors.pop("mu"), tensors.pop("scale")
    settings = {"num_samples": given.num_samples, "noise": given.noise} | settings
    return vf.sample_kl(mu, scale, estimator="monte_carlo", **tensors, **settings)


def exact(given: Case, temperature=1.0, stop_posterior=False) -> tuple[Tensor, Tensor]:
    """In float64, of the given dtype's own leaves."""
    mu, logvar = (given.tensors[name].double() for name in NAMES[:2])
    z = mu + temperature * torch.exp(0.5 * logvar) * given.noise.double()
    if stop_posterior:
        mu, logvar = mu.detach(), logvar.detach()
    zero = torch.zeros((), dtype=torch.float64, device=z.device)
    prior_mu, prior_logvar = (given.tensors.get(name, zero).double() for name in NAMES[2:])
    q = Normal(mu, torch.exp(0.5 * logvar), validate_args=False)
    p = Normal(prior_mu, torch.exp(0.5 * prior_logvar), validate_args=False)
    elements = q.log_prob(z) - p.log_prob(z)
    lead = z.dim() - mu.dim() + 1
    return z, elements.flatten(lead).sum(-1) if elements.dim() > lead else elements


def graded(outputs: tuple[Tensor, Tensor], given: Case, **settings) -> list[Tensor]:
    upstream = [g.to(o.dtype) for o, g in zip(outputs, given.upstream, strict=True)]
    grads = torch.autograd.grad(outputs, list(given.tensors.values()), upstream, **settings)
    return [*outputs, *grads]


@pytest.mark.parametrize("stop_posterior", [False, True])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("samples", "shape"), SHAPES)
def test_against_distributions(backend, samples, shape, prior, stop_posterior):
    given = case(backend, samples, shape, prior)
    settings = {"temperature": 0.7 if samples == 3 else 1.0, "stop_posterior": stop_posterior}
    want = graded(exact(given, **settings), given)
    found = graded(ours(given, **settings), given)
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prior", ["", "shared"])
def test_narrow_dtypes(backend, dtype, prior):
    # Of eight, so that the vectors of 16-bit types are whole ones too.
    for shape in ((41, 33), (9, 64)):
        given = case(backend, 5, shape, prior, dtype)
        want = graded(exact(given), given)
        found = graded(ours(given), given)
        assert found[0].dtype == dtype and found[1].dtype == torch.float32
        eps = torch.finfo(dtype).eps
        for got, expected in zip(found, want, strict=True):
            largest = float(expected.detach().abs().max())
            rtol = 2e-6 if got.dtype == torch.float32 else eps
            torch.testing.assert_close(
                got.double(), expected.double(), rtol=rtol, atol=4e-6 * largest
            )


@pytest.mark.parametrize("param", ["logvar", "log_std", "std", "var", "softplus"])
@pytest.mark.parametrize("clamp", [None, (0.4, 1.5), ("soft", 0.2, 3.0)])
def test_scale_parameters(kernels, param, clamp):
    given = case(kernels, 3, (5, 4), "full")
    with torch.no_grad():
        for name in ("scale", "prior_scale"):
            given.tensors[name].abs_().add_(0.1)
    settings = {"param": param, "clamp": clamp, "min_std": 0.1, "temperature": 0.8}
    for stop_posterior in (False, True):
        found = graded(ours(given, stop_posterior=stop_posterior, **settings), given)
        with vf.backend("reference"):
            want = graded(ours(given, stop_posterior=stop_posterior, **settings), given)
        for got, expected in zip(found, want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("shape", [(6, 50), (4, 2, 7), (9,)])
def test_noise_is_that_of_rsample(backend, samples, shape):
    given = case(backend, samples, shape, dtype=torch.float32)
    for seed in (7, list(range(len(given.tensors["mu"])))):
        z, kl = ours(given, noise=None, seed=seed, offset=5)
        mu, logvar = given.tensors.values()
        assert torch.equal(
            z, vf.rsample(mu, logvar, num_samples=given.num_samples, seed=seed, offset=5)
        )
        want = vf.monte_carlo_kl(z, mu, logvar)
        torch.testing.assert_close(kl, want, rtol=1e-5, atol=1e-5)
        found = torch.autograd.grad((z, kl), (mu, logvar), given.upstream, retain_graph=True)
        separate = torch.autograd.grad((z, want), (mu, logvar), given.upstream)
        for got, expected in zip(found, separate, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_gradcheck(backend):
    given = case(backend, 2, (3, 4), "shared")

    def function(*tensors):
        return ours(given, dict(zip(NAMES, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(given.tensors.values()))
    assert torch.autograd.gradgradcheck(function, tuple(given.tensors.values()))


def test_second_derivatives_with_a_stopped_posterior(kernels):
    given = case(kernels, 2, (3, 4), "shared")

    def twice():
        grads = graded(ours(given, stop_posterior=True), given, create_graph=True)[2:]
        return torch.autograd.grad(sum(g.square().sum() for g in grads), given.tensors.values())

    found = twice()
    with vf.backend("reference"):
        torch.testing.assert_close(found, twice())


def test_layouts(backend):
    given = case(backend, 4, (6, 10), "full")
    want = graded(exact(given), given)
    packed = torch.cat([given.tensors["mu"], given.tensors["scale"]], -1).detach().requires_grad_()
    tensors = dict(given.tensors)
    tensors["mu"], tensors["scale"] = packed.chunk(2, -1)
    noise = given.noise.transpose(0, 1).contiguous().transpose(0, 1)
    z, kl = ours(given, tensors, noise=noise)
    # Gradients as a transposed and an expanded result have them.
    grad_z = given.upstream[0].transpose(1, 2).contiguous().transpose(1, 2)
    (found,) = torch.autograd.grad((z, kl), packed, (grad_z, given.upstream[1]), retain_graph=True)
    torch.testing.assert_close([z, kl, *found.chunk(2, -1)], want[:4])
    (found,) = torch.autograd.grad(kl.sum(), packed)
    (of_kl,) = torch.autograd.grad(ours(given, tensors)[1], packed, torch.ones_like(kl))
    torch.testing.assert_close(found, of_kl)


@pytest.mark.parametrize("output", [0, 1])
def test_one_output_alone(backend, output):
    given = case(backend, 3, (5, 7), "full")
    names = NAMES if output else NAMES[:2]
    leaves = [given.tensors[name] for name in names]
    found = torch.autograd.grad(ours(given)[output], leaves, given.upstream[output])
    want = torch.autograd.grad(exact(given)[output], leaves, given.upstream[output])
    torch.testing.assert_close(found, want)


def test_a_learned_prior_alone(backend):
    given = case(backend, 3, (5, 7), "shared")
    fixed = {n: t.detach() if n in NAMES[:2] else t for n, t in given.tensors.items()}
    z, kl = ours(given, fixed)
    assert kl.requires_grad
    if backend.name != "reference":
        assert not z.requires_grad
    learned = [given.tensors[name] for name in NAMES[2:]]
    found = torch.autograd.grad(kl, learned, given.upstream[1])
    want = torch.autograd.grad(exact(given)[1], learned, given.upstream[1])
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty(backend, shape):
    given = case(backend, 3, shape)
    z, kl, *grads = graded(ours(given), given)
    assert z.shape == (3, *shape) and torch.equal(kl, torch.zeros_like(given.upstream[1]))
    assert [g.shape for g in grads] == [shape, shape]


def test_threads_and_nan_change_nothing_else(backend):
    given = case(backend, 16, (64, 50), dtype=torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outputs = ours(given, noise=None, seed=1)
        results.append(graded(outputs, given, retain_graph=True))
        # And once more from the same graph.
        results.append(graded(outputs, given))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    with torch.no_grad():
        given.tensors["mu"][5, 7] = torch.nan
    _, kl = ours(given, noise=None, seed=1)
    assert torch.isnan(kl[:, 5]).all() and int(torch.isnan(kl).sum()) == 16


def test_where_q_is_p_the_estimate_is_zero(backend):
    mu = torch.zeros(8, 50, device=backend.device)
    _, kl = vf.sample_kl(mu, mu, num_samples=3, estimator="monte_carlo", seed=0)
    # But for what one of the two squares loses where the other is part of a fused operation.
    assert float(kl.abs().max()) < 1e-5


def test_a_narrow_posterior_far_from_the_origin_loses_nothing(backend):
    # z - mu, as `monte_carlo_kl` has to take it, has 3 digits left here.
    given = case(backend, 4, (16, 32), dtype=torch.float32)
    with torch.no_grad():
        given.tensors["mu"].fill_(3.0)
        given.tensors["scale"].fill_(-16.0)
        (z, kl), (_, want) = ours(given), exact(given)
        again = vf.monte_carlo_kl(z, given.tensors["mu"], given.tensors["scale"])
    error = (kl - want).abs().max()
    assert float(error) < 1.5e-7 * float(want.min())
    assert float((again - want).abs().max()) > 30 * float(error)


def test_reductions_and_the_mean_of_many(backend):
    given = case(backend, 40, (30, 5), "shared", torch.float32)
    _, kl = ours(given, noise=None, seed=3)
    _, mean = ours(given, noise=None, seed=3, reduction="batchmean")
    _, total = ours(given, noise=None, seed=3, reduction="sum")
    torch.testing.assert_close([mean, total], [kl.mean(), kl.sum()])
    closed = vf.gaussian_kl(*given.tensors.values(), reduction="sample")
    error = kl.std(0) / 40**0.5
    assert ((kl.mean(0) - closed).abs() < 5 * error).all()


def test_opcheck_and_compile(kernels):
    given = case(kernels, 3, (4, 5), "shared", torch.float32)
    mu, scale, *prior = (t.detach() for t in given.tensors.values())
    state = torch.tensor([1, 0], device=mu.device)
    settings = ("logvar", 0.0, [], 3, 1.0, 0, "sample", 1.0)
    arguments = (mu, scale, *prior, state, None, *settings)
    torch.library.opcheck(torch.ops.vaefast.sample_monte_carlo_kl, (*arguments, None, kernels.name))
    backward = (*given.upstream, *arguments, True, [True, True, False, True], None, kernels.name)
    torch.library.opcheck(torch.ops.vaefast.sample_monte_carlo_kl_backward, backward)

    def bound(mu, scale):
        z, kl = vf.sample_kl(mu, scale, num_samples=3, estimator="monte_carlo", seed=1)
        return vf.importance_loss(-z.square().sum(-1) - kl)

    torch._dynamo.reset()
    compiled = torch.compile(bound, fullgraph=True, backend="aot_eager")
    leaves = [given.tensors[name] for name in NAMES[:2]]
    found = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(found, torch.autograd.grad(bound(*leaves), leaves))


def test_the_bounds_are_those_of_log_weights(backend):
    given = case(backend, 6, (5, 4), dtype=torch.float32)
    mu, logvar = given.tensors.values()
    x = torch.ones(5, 3, device=mu.device)

    def gradients(stop, fused):
        z, kl = ours(given, stop_posterior=stop)
        if fused:
            log_w = -vf.nll(z[..., :3], x, "bernoulli", reduction="sample") - kl
        else:
            options = {"likelihood": "bernoulli", "stop_posterior": stop}
            log_w = vf.log_weights(z[..., :3], x, z, mu, logvar, **options)
        return torch.autograd.grad(vf.importance_loss(log_w), (mu, logvar))

    for stop in (False, True):
        torch.testing.assert_close(
            gradients(stop, True), gradients(stop, False), rtol=1e-5, atol=1e-6
        )


def test_refusals():
    mu = torch.zeros(5, 4)
    estimate = {"estimator": "monte_carlo"}
    for settings, message in (
        ({"estimator": "exact"}, "estimator must be one of"),
        ({"stop_posterior": True}, "stop_posterior needs estimator='monte_carlo'"),
        (estimate | {"mask": mu > 0}, "mask and weight need estimator='closed'"),
        (estimate | {"weight": mu}, "mask and weight need estimator='closed'"),
        (estimate | {"reduction": "dim"}, "reduction must be one of"),
        (estimate | {"num_samples": 0}, "num_samples must be None or at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            vf.sample_kl(mu, mu, **settings)
