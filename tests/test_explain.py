"""`vf.explain`: what serves a call and why no quicker way, for every operator and every reason."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import operator_calls
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu

import vaefast as vf
from vaefast import _explain, backends, likelihoods
from vaefast.backends import costs
from vaefast.backends.reference import mmd as reference_mmd
from vaefast.ops import _plans

native = pytest.mark.skipif(
    "native" not in vf.available_backends(), reason="the reference has no fast path"
)

B, D = 4, 6


def posterior(**settings: Any) -> tuple[Tensor, Tensor]:
    return torch.randn(B, D, **settings), torch.randn(B, D, **settings)


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(B, D, requires_grad=True), torch.rand(B, D)


# Of these calls no part is a kernel's: log weights alone, and models that give zeros.
PLAIN = ("importance_loss", "annealed_log_weights", "log_marginal")


@pytest.mark.parametrize("name", operator_calls.operators())
def test_every_operator_can_be_asked(name: str) -> None:
    """Whatever the operator, each part of the call has a backend and a path, and what is not fast
    says why."""
    for call in operator_calls.calls(name, operator_calls.Sizes()):
        found = vf.explain(call)
        assert found.calls or name in PLAIN
        for part in found.calls:
            assert part.backend in vf.available_backends()
            assert (part.path == "reference") == (part.backend == "reference")
            assert part.fast or part.reasons
        assert str(found)


class Subclass(Tensor):
    pass


def traced(call: Callable[[Tensor], Any], like: Tensor) -> list[_explain.Explanation]:
    """What `explain` says inside of a trace."""
    found = []

    def inside(x: Tensor) -> Tensor:
        found.append(vf.explain(call, x))
        return x + 1

    torch.jit.trace(inside, like, check_trace=False)
    return found


def forward_mode() -> _explain.Explanation:
    logits, x = data()
    with forward_ad.dual_level():
        return vf.explain(vf.nll, forward_ad.make_dual(logits, x), x, "bernoulli")


def transformed() -> list[_explain.Explanation]:
    found = []

    def inside(mu: Tensor, logvar: Tensor) -> Tensor:
        found.append(vf.explain(vf.gaussian_kl, mu, logvar))
        return mu

    torch.func.vmap(inside)(torch.randn(3, B, D), torch.randn(3, B, D))
    return found


def hooked() -> _explain.Explanation:
    with save_on_cpu():
        return vf.explain(vf.sample_kl, *posterior(requires_grad=True))


def faked() -> _explain.Explanation:
    with FakeTensorMode():
        return vf.explain(vf.sample_kl, *posterior())


def asked() -> _explain.Explanation:
    with vf.backend("reference"):
        return vf.explain(vf.mmd, *posterior())


def by_reference() -> _explain.Explanation:
    with vf.backend("reference"):
        return vf.explain(vf.sample_kl, *posterior())


def own_likelihood() -> _explain.Explanation:
    @likelihoods.register("squared", lambda x, params, numbers: (x - params[0]) ** 2)
    @dataclass(frozen=True)
    class Squared(likelihoods.Likelihood):
        param_names: ClassVar[tuple[str, ...]] = ("mean",)

        def draw(self, params: tuple[Tensor, ...], noise: likelihoods.Noise) -> Tensor:
            return params[0]

    return vf.explain(vf.nll, *data(), "squared")


def posteriors_of(other: Callable[[Tensor], Tensor], **settings: Any) -> _explain.Explanation:
    mu, logvar = posterior()
    return vf.explain(vf.sample_kl, mu, other(logvar), **settings)


def asked_with(target: Tensor, likelihood: Any = "bernoulli", **settings: Any) -> Any:
    return vf.explain(vf.nll, data()[0], target, likelihood, **settings)


def by_cost() -> Any:
    """As if the CPU were a GPU that both backends serve, and the reference Triton's kernels."""
    cost = costs.Cost(9.0, 8.0, "instructions")
    with (
        mock.patch.object(backends, "_name", lambda device: "cuda"),
        mock.patch.object(backends, "unavailable", lambda name, device: None),
        mock.patch.object(backends, "_serving", backends._serving.__wrapped__),
        mock.patch.object(backends, "cost_of", lambda kind: cost),
        mock.patch.object(backends, "load", lambda name, op: reference_mmd),
        mock.patch.object(reference_mmd, "mmd", lambda x, y, *_: (x.sum(), x, y)),
        vf.backend("auto"),
    ):
        return vf.explain(vf.mmd, *posterior())


def widened() -> Any:
    mean, target = torch.randn(B, D, dtype=torch.bfloat16), torch.rand(B, D, requires_grad=True)
    return vf.explain(vf.nll, mean, target, vf.Gaussian(std=0.5))


# What provokes each reason, and a word of what is said then.
PROVOKED: dict[str, tuple[Callable[[], Any], str]] = {
    "argument": (lambda: asked_with(data()[1].to_sparse_csr(), "poisson"), "sparse"),
    "operator": (
        lambda: vf.explain(
            vf.linear_nll, torch.randn(B, 2), torch.randn(D, 2), None, data()[1], "bernoulli"
        ),
        "linear_nll has no fast path",
    ),
    "learned": (lambda: asked_with(data()[1], vf.Gaussian(torch.ones(1))), "0-dimensional"),
    "layout": (
        lambda: vf.explain(vf.gaussian_kl, *torch.zeros(2, B, 3, D).transpose(2, 3)),
        "another order",
    ),
    "copied": (
        lambda: vf.explain(
            vf.nll, torch.zeros(B, D).half(), torch.zeros(B, dtype=torch.int64), "categorical"
        ),
        "another dtype",
    ),
    "dtype": (widened, "bfloat16"),
    "shape": (
        lambda: vf.explain(vf.nll, (torch.randn(B, D), torch.randn(B, 1)), data()[1], "gaussian"),
        "[4, 6] and [4, 1]",
    ),
    "device": (lambda: vf.explain(vf.sample_kl, *posterior(device="meta")), "meta"),
    "backend": (by_reference, "'reference'"),
    "settings": (lambda: posteriors_of(Tensor.clone, clamp=[-1.0, 1.0]), "not hashable"),
    "class": (lambda: posteriors_of(lambda t: t.as_subclass(Subclass)), "Subclass"),
    "negated": (lambda: posteriors_of(lambda t: torch.complex(t, t).conj().imag), "negated"),
    "memory": (
        lambda: posteriors_of(lambda t: torch._efficientzerotensor((B, D))),
        "no memory",
    ),
    "mode": (faked, "dispatch mode"),
    "graph": (
        lambda: vf.explain(torch.compile(vf.gaussian_kl, backend="eager"), *posterior()),
        "compiled graph",
    ),
    "hooks": (hooked, "checkpointing"),
    "constant": (lambda: asked_with(torch.rand(B, D, requires_grad=True)), "target"),
    "transform": (transformed, "torch.func"),
    "forward": (forward_mode, "forward-mode"),
    "trace": (
        lambda: traced(lambda x: vf.nll(x, x.detach(), "bernoulli"), torch.rand(B, D)),
        "jit.trace",
    ),
    "empty": (lambda: vf.explain(vf.nll, torch.ones(0, D), torch.ones(0, D), "laplace"), "no elem"),
    "form": (own_likelihood, "squared"),
    "asked": (asked, "'reference' was asked for"),
    "unavailable": (
        lambda: vf.explain(vf.sample_kl, *posterior(device="meta")),
        "no native kernels for meta",
    ),
    "cost": (by_cost, "mmd float32 costs 9 by 'native' and 8 by 'triton'"),
}


@native
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reason", _explain.REASONS)
def test_every_reason_is_given(reason: str) -> None:
    assert reason in PROVOKED, "a reason needs a call here that provokes it"
    provoke, word = PROVOKED[reason]
    found = provoke()
    found = found[-1] if isinstance(found, list) else found
    words = [w for part in found.calls for w in part.reasons]
    start = _explain.REASONS[reason].partition("{")[0]
    assert any(w.startswith(start) and word in w for w in words), words
    assert word in str(found)


@native
def test_every_reason_is_given_somewhere() -> None:
    """And no place gives one that is not listed."""
    import re
    from pathlib import Path

    text = "".join(f.read_text() for f in Path(vf.__file__).parent.rglob("*.py"))
    assert set(re.findall(r'declined\(\s*"(\w+)"', text)) == set(_explain.REASONS)


@native
def test_a_fast_call_needs_no_reason() -> None:
    mu, logvar = posterior(requires_grad=True)
    logits, x = data()
    found = vf.explain(vf.elbo_loss, logits, x, mu, logvar, likelihood="bernoulli")
    assert [(c.operator, c.path, c.reasons) for c in found.calls] == [
        ("sample_kl", "fast", ()),
        ("nll", "fast", ()),
    ]
    assert all(c.fast for c in found.calls)


@native
def test_what_is_asked_is_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that `explain` finds fast find a plan by themselves, the others none."""
    found: list[bool] = []

    class Counted(dict[Any, Any]):
        looks = None

        def get(self, key: Any, default: Any = None) -> Any:
            plan = super().get(key, default)
            found.append(plan is not None)
            return plan

    kept = Counted()
    monkeypatch.setattr(_plans, "kept", kept)
    for settings in ({}, {"num_samples": 2}, {"clamp": (-1.0, 1.0)}, {"reduction": "none"}):
        told = vf.explain(vf.sample_kl, *posterior(), **settings)
        found.clear()
        vf.sample_kl(*posterior(), **settings)
        assert any(found) == told.calls[0].fast
    assert _plans.kept is kept


def test_random_states_are_put_back() -> None:
    generator = torch.Generator().manual_seed(3)
    before = torch.get_rng_state(), generator.get_state()
    vf.explain(vf.rsample, *posterior_of_zeros())
    vf.explain(vf.rsample, *posterior_of_zeros(), generator=generator)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(generator.get_state(), before[1])


def posterior_of_zeros() -> tuple[Tensor, Tensor]:
    return torch.zeros(B, D), torch.zeros(B, D)


def test_a_whole_step_and_what_is_not_ours() -> None:
    layer = torch.nn.Linear(D, 2 * D)

    def step(x: Tensor) -> None:
        mu, logvar = layer(x).chunk(2, 1)
        z, kl = vf.sample_kl(mu, logvar)
        vf.elbo_loss(z, x, kl=kl, likelihood="bernoulli").loss.backward()

    found = vf.explain(step, torch.rand(B, D))
    assert found.calls[0].operator == "sample_kl"
    assert "no operator" in str(vf.explain(torch.square, torch.ones(2)))


@native
def test_other_threads_are_not_listened_to() -> None:
    def both() -> None:
        thread = threading.Thread(target=lambda: vf.mmd(*posterior()))
        thread.start()
        thread.join()
        vf.gaussian_kl(*posterior())

    assert [c.operator for c in vf.explain(both).calls] == ["sample_kl"]


@native
def test_two_may_ask_at_once() -> None:
    """One inside of another, in a thread of its own: each is told of its own calls."""
    inner = []

    def ask() -> None:
        inner.append(vf.explain(vf.gaussian_kl, *posterior()))

    def outer() -> None:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(60)
        vf.mmd(*posterior())

    found = vf.explain(outer)
    assert [c.operator for c in found.calls] == ["mmd"]
    assert [c.path for c in inner[-1].calls] == ["fast"]
    assert type(_plans.kept) is _plans.Kept


def test_an_error_is_the_functions() -> None:
    with pytest.raises(ValueError, match="likelihood"):
        vf.explain(vf.nll, *data(), "no such")
    assert not _explain.listening()


def test_calls_of_one_kind_are_counted() -> None:
    x, y = posterior()
    found = vf.explain(lambda: [vf.mmd(x, y) for _ in range(3)])
    assert len(found.calls) == 3
    assert "3 times" in str(found)
