"""Derivatives where a formula has a tie: an absolute value, a maximum, a bound, a branch.

Where the function is smooth there its derivatives are the function's, to second order; where it is
not, the first is the mean of its two sides and the second 0. At a bound the derivative is 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from conftest import Target
from likelihood_cases import ALL, LikelihoodCase, kind
from torch import Tensor

import vaefast as vf
from vaefast import likelihoods
from vaefast.backends.reference._exact import clamp, decayed

WIDE = torch.float64
REAL = [-1.0, -0.5, 0.0, 0.5, 1.0]


def opened(
    x: Tensor, low: Tensor | float | None = None, high: object = None, **more: object
) -> Tensor:
    """torch's clamp as later versions have it: on the bound itself its derivative is 0."""
    low, high = more.get("min", low), more.get("max", high)
    if low is not None:
        x = torch.where(x > low, x, torch.as_tensor(low, dtype=x.dtype))
    if high is not None:
        x = torch.where(x < high, x, torch.as_tensor(high, dtype=x.dtype))
    return x


@pytest.fixture(params=["as it is", "open"])
def torchs_clamp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """torch's own clamp, of either kind: nothing here may depend on it."""
    if request.param == "open":
        monkeypatch.setattr(torch, "clamp", opened)
        monkeypatch.setattr(torch.Tensor, "clamp", opened)
    kind: str = request.param
    return kind


def grid(case: LikelihoodCase) -> tuple[list[Tensor], Tensor]:
    """Parameters and targets, each [N, 1]: all combinations, so that every tie is among them."""
    model = case.build()
    targets = [v for v in (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0) if model.support(torch.tensor(v))]
    names = likelihoods.registered()[case.name].param_names[: case.count]
    values = []
    for name in names:
        inside = {"probability": [0.25, 0.5, 0.75], "positive": [0.5, 1.0, 2.0, 3.0]}
        values.append(inside.get(kind(model.domain(name)), REAL))
    rows = torch.tensor(list(itertools.product(targets, *values)), dtype=WIDE)
    x, *params = (c[:, None] for c in rows.T)
    return [p.clone() for p in params], x


def truth(
    value: Callable[[list[Tensor]], Tensor], params: list[Tensor], j: int
) -> tuple[Tensor, Tensor]:
    """The first and second derivative in parameter j, by central differences."""

    def at(step: float) -> Tensor:
        return value([p + step if k == j else p for k, p in enumerate(params)])

    small, step = 1e-6, 1e-3
    first = (at(small) - at(-small)) / (2 * small)
    curved = (at(step) + at(-step) - 2 * at(0.0)) / step**2
    # A kink's second difference grows as 1 / step.
    kink = (at(small) + at(-small) - 2 * at(0.0)).abs() / small > 1e-3
    return first, torch.where(kink, 0.0, curved)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_likelihood(backend: Target, case: LikelihoodCase) -> None:
    params, x = grid(case)
    params = [p.to(backend.device).requires_grad_() for p in params]
    x = x.to(backend.device)
    model = case.build()

    def value(given: list[Tensor]) -> Tensor:
        return vf.nll(tuple(given), x, model, reduction="none")

    plain = torch.autograd.grad(value(params).sum(), params)
    grads = torch.autograd.grad(value(params).sum(), params, create_graph=True)
    for j, param in enumerate(params):
        first, second = truth(value, [p.detach() for p in params], j)
        tolerance = {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(plain[j], first, **tolerance)
        torch.testing.assert_close(grads[j].detach(), first, **tolerance)
        got = torch.zeros_like(param)
        if grads[j].requires_grad:
            (found,) = torch.autograd.grad(
                grads[j].sum(), param, retain_graph=True, allow_unused=True
            )
            got = got if found is None else found
        # Of numbers of size 1; a level's width among the discretised ones makes them larger.
        torch.testing.assert_close(got, second, rtol=2e-3, atol=2e-5)


def test_bernoulli_at_zero(backend: Target) -> None:
    """Everything that starts at zero starts here: a zero-initialised head's logits."""
    logits = torch.zeros(3, device=backend.device)
    x = torch.tensor([0.0, 0.3, 1.0], device=backend.device)

    def loss(at: Tensor) -> Tensor:
        return vf.nll(at, x, "bernoulli", reduction="none")

    torch.testing.assert_close(torch.func.grad(lambda t: loss(t).sum())(logits), 0.5 - x)
    _, tangent = torch.func.jvp(loss, (logits,), (torch.ones_like(logits),))
    torch.testing.assert_close(tangent, 0.5 - x)
    hessian = torch.func.hessian(lambda t: loss(t).sum())(logits)
    torch.testing.assert_close(hessian.diagonal(), torch.full_like(logits, 0.25))


def test_probabilities_of_zero_and_one(backend: Target) -> None:
    p = torch.tensor([0.0, 1.0]).repeat_interleave(3).to(backend.device).requires_grad_()
    x = torch.tensor([0.0, 0.25, 1.0] * 2, device=backend.device)
    loss = vf.nll(p, x, vf.likelihoods.Bernoulli(logits=False), reduction="none")
    want = torch.tensor([0.0, 25.0, 100.0, 100.0, 75.0, 0.0])
    torch.testing.assert_close(loss.detach().cpu(), want)
    (grad,) = torch.autograd.grad(loss.sum(), p)
    want = torch.tensor([1.0, -0.25e12, -1e12, 1e12, 0.75e12, -1.0])
    torch.testing.assert_close(grad.cpu(), want)
    theirs = torch.nn.functional.binary_cross_entropy(p, x, reduction="none")
    torch.testing.assert_close(loss, theirs)


@pytest.mark.parametrize("kernel", ["plain", "create_graph"])
@pytest.mark.parametrize("param", ["logvar", "log_std", "std", "var", "softplus"])
def test_scale_on_its_bounds(backend: Target, param: str, kernel: str, torchs_clamp: str) -> None:
    """The gradient on a bound is that without one; outside it is 0."""
    low, high = (0.5, 2.0)
    values = torch.tensor([[0.25, low, 1.0, high, 3.0]], device=backend.device)
    mu = torch.full_like(values, 0.7)
    scale = values.clone().requires_grad_()
    graph = kernel == "create_graph"
    for op in (vf.gaussian_kl, lambda *a, **k: sum(t.sum() for t in vf.sample_kl(*a, **k, seed=0))):
        kl = op(mu, scale, param=param, clamp=(low, high)).sum()
        free = op(mu, scale, param=param).sum()
        got, want = (torch.autograd.grad(v, scale, create_graph=graph)[0] for v in (kl, free))
        inside = (values >= low) & (values <= high)
        torch.testing.assert_close(got, torch.where(inside, want, 0.0))
        if graph:
            got, want = (torch.autograd.grad(g.sum(), scale)[0] for g in (got, want))
            torch.testing.assert_close(got, torch.where(inside, want, 0.0))


@pytest.mark.parametrize("per", ["dim", "sample", "total"])
def test_free_bits_on_the_threshold(backend: Target, per: str, torchs_clamp: str) -> None:
    mu = torch.tensor([[1.0, 1.0], [1.0, 1.0]], device=backend.device).requires_grad_()
    logvar = torch.zeros_like(mu)
    at = 0.5 if per == "dim" else 1.0
    for bits, share in ((at, 1.0), (at + 1e-6, 0.0)):
        kl = vf.gaussian_kl(mu, logvar, free_bits=bits, free_bits_per=per)
        (grad,) = torch.autograd.grad(kl, mu)
        torch.testing.assert_close(grad, share * 0.5 * mu.detach())
        if per == "dim":
            continue
        x = torch.ones(2, 3, device=backend.device)
        raw = vf.gaussian_kl(mu, logvar, reduction="sample")
        loss = vf.elbo_loss(
            torch.zeros_like(x), x, kl=raw, likelihood="bernoulli", free_bits=bits,
            free_bits_per=per,
        ).loss  # fmt: skip
        (grad,) = torch.autograd.grad(loss, mu)
        torch.testing.assert_close(grad, share * 0.5 * mu.detach())


def test_capacity_at_the_kl(backend: Target) -> None:
    mu = torch.ones(2, 2, device=backend.device).requires_grad_()
    x = torch.ones(2, 3, device=backend.device)
    loss = vf.elbo_loss(
        torch.zeros_like(x), x, mu, torch.zeros_like(x[:, :2]), likelihood="bernoulli", capacity=1.0
    ).loss
    (grad,) = torch.autograd.grad(loss, mu)
    assert not grad.any()


def test_least_log_scale_of_a_mixture(backend: Target, torchs_clamp: str) -> None:
    """On the bound the gradient is that of a bound far below."""
    params = 0.3 * torch.randn(2, 6, 5, device=backend.device)
    params[:, 4:] = torch.tensor([-2.0, -1.0])[None, :, None]
    x = 0.5 * torch.ones(2, 1, 5, device=backend.device)
    grads = []
    for least in (-2.0, -7.0):
        model = vf.likelihoods.DiscretizedLogisticMixture(1, 2, min_log_scale=least)
        leaf = params.clone().requires_grad_()
        grads.append(torch.autograd.grad(vf.nll(leaf, x, model), leaf)[0])
    assert grads[0][:, 4].abs().min() > 0
    torch.testing.assert_close(*grads)


def test_bounds_of_the_latent_distribution(torchs_clamp: str) -> None:
    raw = torch.tensor([[0.0, -30.0], [0.0, -31.0]]).T[None].reshape(2, 2).requires_grad_()
    posterior = vf.DiagonalGaussian(raw[:, :2].flip(1))
    (grad,) = torch.autograd.grad(posterior.logvar.sum(), raw)
    inside = (raw.flip(1)[:, 1] >= -30) & (raw.flip(1)[:, 1] <= 20)
    torch.testing.assert_close(grad.flip(1)[:, 1], inside.float())


@pytest.mark.parametrize("how", ["eager", "grad", "jvp", "vmap", "compile"])
def test_clamp(how: str) -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 2.0, 2.5, torch.nan, torch.inf, -torch.inf])
    want = torch.tensor([-1.0, -1.0, 0.0, 2.0, 2.0, torch.nan, 2.0, -1.0])
    slope = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])

    def cut(t: Tensor) -> Tensor:
        return clamp(t, -1.0, 2.0)

    torch.testing.assert_close(cut(x), want, equal_nan=True)
    if how == "grad":
        got = torch.func.vmap(torch.func.grad(cut))(x)
    elif how == "jvp":
        got = torch.func.jvp(cut, (x,), (torch.ones_like(x),))[1]
    else:
        run = {"compile": lambda: torch.compile(cut, backend="aot_eager", fullgraph=True)}
        run["vmap"] = lambda: torch.func.vmap(cut)
        leaf = x.clone().requires_grad_()
        (got,) = torch.autograd.grad(run.get(how, lambda: cut)()(leaf).sum(), leaf)
    torch.testing.assert_close(got, slope)


@pytest.mark.parametrize("transform", ["autograd", "func"])
def test_decayed(transform: str) -> None:
    """x e^-s and its derivatives to second order, also with e^-s beyond what float64 holds."""
    x = torch.tensor([0.0, 0.3, -2.0, 0.0, 1e-300], dtype=WIDE)
    s = torch.tensor([0.5, -1.0, 3.0, -800.0, -900.0], dtype=WIDE)
    value = x * torch.exp(-s.clamp(min=-700)) * torch.exp((-700 - s).clamp(min=0))
    torch.testing.assert_close(decayed(x, s), value)
    if transform == "func":

        def both(a: Tensor, b: Tensor) -> Tensor:
            return decayed(a, b)

        to_s = torch.func.vmap(torch.func.grad(both, 1))(x, s)
        twice = torch.func.vmap(torch.func.grad(torch.func.grad(both, 1), 1))(x, s)
        mixed = torch.func.vmap(torch.func.jacfwd(torch.func.grad(both, 0), 1))(x[:3], s[:3])
    else:
        x.requires_grad_()
        s.requires_grad_()
        to_x, to_s = torch.autograd.grad(decayed(x, s).sum(), [x, s], create_graph=True)
        (twice,) = torch.autograd.grad(to_s.sum(), s, retain_graph=True)
        mixed = torch.autograd.grad(to_x[:3].sum(), s)[0][:3]
    torch.testing.assert_close(to_s.detach(), -value)
    torch.testing.assert_close(twice, value)
    torch.testing.assert_close(mixed, -torch.exp(-s[:3].detach()))
