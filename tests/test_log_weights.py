"""Log importance weights and the Monte Carlo KL, against float64 and torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal

import vaefast as vf
from vaefast.ops._monte_carlo_kl import run
from vaefast.ops.rsample import transform_of

# K, B, *latent.
SHAPES = [(1, 1, 1), (3, 41, 7), (5, 2, 1271), (2, 3, 4, 5), (64, 17, 50), (4, 6)]
NAMES = ("z", "mu", "scale", "prior_mu", "prior_scale")


def inputs(shape: tuple[int, ...], prior: str = "", dtype=torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    full, one = shape, shape[1:]
    sizes = {"z": full, "mu": one, "scale": one}
    if "full" in prior:
        sizes |= {"prior_mu": one, "prior_scale": one}
    if "shared" in prior:
        sizes |= {"prior_mu": one[1:], "prior_scale": one[1:]}
    if "mean" in prior:
        sizes |= {"prior_mu": one[1:]}
    return {
        name: torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, size in sizes.items()
    }


def exact(z: Tensor, mu: Tensor, scale: Tensor, prior_mu=None, prior_scale=None) -> Tensor:
    q = Normal(mu, torch.exp(0.5 * scale))
    zero = torch.zeros((), dtype=torch.float64)
    p = Normal(
        zero if prior_mu is None else prior_mu,
        torch.exp(0.5 * (zero if prior_scale is None else prior_scale)),
    )
    elements = q.log_prob(z) - p.log_prob(z)
    return elements.flatten(2).sum(-1) if z.dim() > 2 else elements


def graded(function, tensors: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    value = function(**tensors)
    upstream = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)
    return value, list(torch.autograd.grad(value, list(tensors.values()), upstream.to(value)))


def ours(transform=None, **tensors: Tensor) -> Tensor:
    z, mu, scale, *_ = tensors.values()
    more = {name: tensors.get(name) for name in NAMES[3:]}
    return run(z, mu, scale, transform or transform_of("logvar", 0.0, None), **more)


@pytest.mark.parametrize("prior", ["", "full", "shared", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_distributions(implementation: str, shape: tuple[int, ...], prior: str) -> None:
    tensors = inputs(shape, prior)
    want, grads = graded(exact, tensors)
    value, found = graded(ours, tensors)
    torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-11)
    for got, expected in zip(found, grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prior", ["", "shared"])
def test_narrow_dtypes(implementation: str, dtype: torch.dtype, prior: str) -> None:
    tensors = inputs((5, 41, 33), prior, dtype)
    wide = {n: t.detach().double().requires_grad_() for n, t in tensors.items()}
    want, grads = graded(exact, wide)
    value, found = graded(ours, tensors)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value.double(), want, rtol=2e-6, atol=2e-6 * float(want.detach().abs().max())
    )
    eps = torch.finfo(dtype).eps
    for got, expected in zip(found, grads, strict=True):
        assert got.dtype == dtype
        largest = float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=eps, atol=4e-6 * largest)


@pytest.mark.parametrize("param", ["logvar", "log_std", "std", "var", "softplus"])
@pytest.mark.parametrize("clamp", [None, (0.4, 1.5), ("soft", 0.2, 3.0)])
def test_scale_parameters(implementation: str, param: str, clamp) -> None:
    tensors = inputs((3, 5, 4), "full")
    for name in ("scale", "prior_scale"):
        tensors[name] = (tensors[name].detach().abs() + 0.1).requires_grad_()
    transform = transform_of(param, 0.1, clamp)
    value, found = graded(lambda **t: ours(transform, **t), tensors)
    with vf.backend("reference"):
        want, grads = graded(lambda **t: ours(transform, **t), tensors)
    for got, expected in zip([value, *found], [want, *grads], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("wanted", NAMES)
def test_only_the_wanted_gradient(implementation: str, wanted: str) -> None:
    check_only_the_wanted_gradient(wanted)


def check_only_the_wanted_gradient(wanted: str) -> None:
    tensors = inputs((3, 5, 7), "full")
    _, grads = graded(exact, tensors)
    value = ours(**{n: t if n == wanted else t.detach() for n, t in tensors.items()})
    upstream = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)
    (found,) = torch.autograd.grad(value, tensors[wanted], upstream)
    torch.testing.assert_close(found, dict(zip(tensors, grads, strict=True))[wanted])


def test_log_q_alone(implementation: str) -> None:
    def log_q(z: Tensor, mu: Tensor, scale: Tensor) -> Tensor:
        return Normal(mu, torch.exp(0.5 * scale)).log_prob(z).sum(-1)

    tensors, transform = inputs((3, 5, 7)), transform_of("logvar", 0.0, None)
    want, grads = graded(log_q, tensors)
    value, found = graded(lambda z, mu, scale: run(z, mu, scale, transform, prior=False), tensors)
    torch.testing.assert_close([value, *found], [want, *grads])


def test_gradcheck(implementation: str) -> None:
    tensors = tuple(inputs((2, 3, 4), "shared").values())
    function = lambda *t: ours(**dict(zip(NAMES, t, strict=True)))  # noqa: E731
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_layouts(implementation: str) -> None:
    tensors = inputs((4, 6, 10), "full")
    want, grads = graded(exact, tensors)
    strided = dict(tensors)
    strided["z"] = tensors["z"].detach().transpose(0, 1).contiguous().transpose(0, 1)
    strided["z"] = strided["z"].requires_grad_()
    chunked = torch.cat([tensors["mu"].detach(), tensors["scale"].detach()], -1).requires_grad_()
    strided["mu"], strided["scale"] = chunked.chunk(2, -1)
    value, found = graded(ours, strided)
    torch.testing.assert_close(value, want)
    for got, expected in zip(found, grads, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("shape", [(3, 0, 4), (3, 4, 0)])
def test_empty(implementation: str, shape: tuple[int, ...]) -> None:
    value, found = graded(ours, inputs(shape))
    assert torch.equal(value, torch.zeros(shape[:2], dtype=torch.float64))
    assert [g.shape for g in found] == [shape, shape[1:], shape[1:]]


def test_threads_and_bad_samples_change_nothing_else(implementation: str) -> None:
    tensors = inputs((16, 64, 50), "", torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(graded(ours, tensors))
    assert torch.equal(results[0][0], results[1][0])
    assert all(map(torch.equal, results[0][1], results[1][1]))
    with torch.no_grad():
        tensors["z"][3, 5, 7] = torch.nan
    value, _ = graded(ours, tensors)
    assert torch.isnan(value[3, 5]) and int(torch.isnan(value).sum()) == 1


def test_opcheck_and_compile(implementation: str) -> None:
    if implementation == "reference":
        pytest.skip("the registered operator serves kernels")
    z, mu, scale = inputs((3, 4, 5), "", torch.float32).values()
    torch.library.opcheck(
        torch.ops.vaefast.monte_carlo_kl,
        (
            z.detach(),
            mu.detach(),
            scale.detach(),
            None,
            None,
            "logvar",
            0.0,
            [],
            True,
            None,
            "native",
        ),
    )
    x = torch.rand(4, 6)

    def loss(z: Tensor, mu: Tensor, scale: Tensor) -> Tensor:
        logits = z[..., :1].expand(3, 4, 6)
        return vf.importance_loss(vf.log_weights(logits, x, z, mu, scale, likelihood="bernoulli"))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(z, mu, scale), (z, mu, scale))
    want = torch.autograd.grad(loss(z, mu, scale), (z, mu, scale))
    torch.testing.assert_close(got, want)


def test_log_weights_are_the_textbook_ones(implementation: str) -> None:
    z, mu, logvar = inputs((3, 5, 4)).values()
    logits = torch.randn(3, 5, 7, dtype=torch.float64)
    x = (torch.rand(5, 7) < 0.5).double()
    log_w = vf.log_weights(logits, x, z, mu, logvar, likelihood="bernoulli")
    want = Independent(Bernoulli(logits=logits), 1).log_prob(x) - exact(z, mu, logvar)
    torch.testing.assert_close(log_w, want)
    prior = Normal(0.0, 2.0).log_prob(z).sum(-1)
    other = vf.log_weights(logits, x, z, mu, logvar, likelihood="bernoulli", log_prior=prior)
    standard = Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(other, want - standard + prior)
    one = vf.log_weights(logits[0], x, z[0], mu, logvar, likelihood="bernoulli")
    torch.testing.assert_close(one, want[0])


def test_stopped_posterior_leaves_the_path_through_z() -> None:
    mu = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    logvar = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    z = vf.rsample(mu, logvar, num_samples=3, seed=0)
    logits, x = torch.zeros(3, 5, 2, dtype=torch.float64), torch.ones(5, 2)
    log_w = vf.log_weights(logits, x, z, mu, logvar, likelihood="bernoulli", stop_posterior=True)
    found = torch.autograd.grad(log_w.sum(), (mu, logvar, z), retain_graph=True)
    through = torch.autograd.grad(z, (mu, logvar), found[2])
    torch.testing.assert_close(found[:2], through)


def test_monte_carlo_kl_of_a_flow(implementation: str) -> None:
    z, mu, logvar = inputs((6, 5, 4)).values()
    q = Normal(mu, torch.exp(0.5 * logvar)).log_prob(z).sum(-1)
    slope = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    moved, log_det = z * slope + 1, slope.log().sum().expand(5)
    kl = vf.monte_carlo_kl(z, mu, logvar, z_flow=moved, log_det=log_det)
    torch.testing.assert_close(kl, q - log_det - Normal(0.0, 1.0).log_prob(moved).sum(-1))
    prior = (torch.ones(4, dtype=torch.float64), torch.full((4,), 0.3, dtype=torch.float64))
    density = Normal(prior[0], torch.exp(0.5 * prior[1]))
    want = q - log_det - density.log_prob(moved).sum(-1)
    for given in (prior, lambda t: density.log_prob(t).sum(-1), density.log_prob(moved).sum(-1)):
        kl = vf.monte_carlo_kl(z, mu, logvar, z_flow=moved, log_det=log_det, prior=given)
        torch.testing.assert_close(kl, want)
    plain = vf.monte_carlo_kl(z, mu, logvar, prior=prior)
    torch.testing.assert_close(plain, q - density.log_prob(z).sum(-1))


def test_refusals() -> None:
    z, mu, logvar = torch.zeros(3, 5, 4), torch.zeros(5, 4), torch.zeros(5, 4)
    logits, x = torch.zeros(3, 5, 2), torch.zeros(5, 2)
    weigh = lambda *t, **k: vf.log_weights(*t, likelihood="bernoulli", **k)  # noqa: E731
    with pytest.raises(ValueError, match=r"z must have mu's shape, \[5, 4\]"):
        weigh(logits, x, z[..., :3], mu, logvar)
    with pytest.raises(ValueError, match="params must have z's leading dimensions"):
        weigh(logits[:2], x, z, mu, logvar)
    with pytest.raises(ValueError, match="log_prior excludes"):
        weigh(logits, x, z, mu, logvar, log_prior=torch.zeros(3, 5), prior_mu=mu)
    with pytest.raises(ValueError, match="log_det must have one value per sample"):
        vf.monte_carlo_kl(z, mu, logvar, log_det=torch.zeros(4))
