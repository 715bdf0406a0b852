"""One call of every public operator and of every registered likelihood, for the tracer sweep.

A call is found by walking `vaefast.__all__` and the registries, so that an operator or a
likelihood without one fails loudly.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import likelihood_cases
import torch
from torch import Tensor

import vaefast as vf
from vaefast import likelihoods

D, X, K = 3, 5, 2
Call = Callable[..., Any]

# Estimates that are evaluated, not trained: loops in Python over the operators below.
LOOPS = {"annealed_log_weights", "log_marginal"}


class TracedCall(NamedTuple):
    """`call` of the tensors that `tensors(batch)` makes; `batch` is the dimension of each that the
    batch is, None where it has none; the first `leaves` of them take a gradient."""

    operator: str
    call: Call
    tensors: Callable[[int], tuple[Tensor, ...]]
    batch: tuple[int | None, ...]
    leaves: int

    def wide(self, batch: int = 6) -> tuple[Tensor, ...]:
        """The tensors with what is floating in float64."""
        return tuple(t.double() if t.is_floating_point() else t for t in self.tensors(batch))


def outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def loss(case: TracedCall, tensors: tuple[Tensor, ...]) -> Tensor:
    """A scalar of what can be differentiated."""
    found = [o for o in outputs(case.call(*tensors)) if o.is_floating_point()]
    return sum((o * (1 + i)).square().sum() for i, o in enumerate(found))


def _posterior(batch: int, *more: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(s) for s in ((batch, D), (batch, D), *more))


def _plain(operator: str, call: Call, *shapes: Any, leaves: int | None = None) -> TracedCall:
    """Of normal tensors; "B" in a shape is the batch."""

    def tensors(batch: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn([batch if d == "B" else d for d in shape]) for shape in shapes)

    at = tuple(shape.index("B") if "B" in shape else None for shape in shapes)
    return TracedCall(operator, call, tensors, at, len(shapes) if leaves is None else leaves)


P = ("B", D)
Z = (K, "B", D)

OPERATORS: dict[str, TracedCall] = {
    "rsample": _plain("rsample", lambda m, s: vf.rsample(m, s, seed=3), P, P),
    "rsample, many": _plain(
        "rsample", lambda m, s: vf.rsample(m, s, seed=3, num_samples=K, clamp=(-1.0, 1.0)), P, P
    ),
    "rsample, noise": _plain(
        "rsample", lambda m, s, e: vf.rsample(m, s, noise=e, temperature=0.7), P, P, P
    ),
    "gaussian_kl": _plain("gaussian_kl", lambda m, s: vf.gaussian_kl(m, s), P, P),
    "gaussian_kl, prior": _plain(
        "gaussian_kl",
        lambda *t: vf.gaussian_kl(*t, free_bits=0.1, param="softplus", reduction="mean"),
        P, P, (D,), P,
    ),
    "sample_kl": _plain("sample_kl", lambda m, s: vf.sample_kl(m, s, seed=3), P, P),
    "gaussian_kl, balanced": _plain(
        "gaussian_kl", lambda *t: vf.gaussian_kl(*t, balance=0.8), P, P, (D,), P
    ),
    "sample_kl, balanced": _plain(
        "sample_kl",
        lambda m, s, p, v: vf.sample_kl(
            m, s, seed=3, prior_mu=p, prior_scale=v, balance=0.8, free_bits=0.1
        ),
        P, P, P, (D,),
    ),
    "sample_kl, mean": _plain(
        "sample_kl", lambda m, s: vf.sample_kl(m, s, seed=3, reduction="mean"), P, P
    ),
    "sample_kl, Monte Carlo": _plain(
        "sample_kl",
        lambda m, s, p: vf.sample_kl(
            m, s, seed=3, prior_mu=p, num_samples=K, estimator="monte_carlo"
        ),
        P, P, (D,),
    ),
    "linear_nll": _plain(
        "linear_nll",
        lambda h, w, b, x: vf.linear_nll(h, w, b, x.sigmoid(), "bernoulli"),
        P, (X, D), (X,), ("B", X), leaves=3,
    ),
    "linear_nll, rows": _plain(
        "linear_nll",
        lambda h, w, x: vf.linear_nll(h, w, None, x.abs().round(), "multinomial", reduction="sum"),
        P, (X, D), ("B", X), leaves=2,
    ),
    "elbo_loss": _plain(
        "elbo_loss",
        lambda p, m, s, x: vf.elbo_loss(p, x.sigmoid(), m, s, likelihood="bernoulli"),
        ("B", X), P, P, ("B", X), leaves=3,
    ),
    "elbo_loss, parts": _plain(
        "elbo_loss",
        lambda p, k, x: vf.elbo_loss(
            p, x, kl=k.square(), likelihood="gaussian", beta=0.5, capacity=1.0, reduction="mean"
        ),
        ("B", X), ("B",), ("B", X), leaves=2,
    ),
    "log_weights": _plain(
        "log_weights",
        lambda p, z, m, s, x: vf.log_weights(p, x, z, m, s, likelihood="gaussian"),
        (K, "B", X), Z, P, P, ("B", X), leaves=4,
    ),
    "monte_carlo_kl": _plain("monte_carlo_kl", lambda z, m, s: vf.monte_carlo_kl(z, m, s), Z, P, P),
    "tc_terms": _plain(
        "tc_terms", lambda z, m, s: vf.tc_terms(z, m, s, dataset_size=5000), P, P, P
    ),
    "tc_terms, mws": _plain(
        "tc_terms", lambda z, m, s: vf.tc_terms(z, m, s, dataset_size=5000, method="mws"), P, P, P
    ),
    "mixture_log_prob": _plain(
        "mixture_log_prob", lambda z, m, s, w: vf.mixture_log_prob(z, m, s, w), P, (4, D), (4, D),
        (4,),
    ),
    "mmd": _plain("mmd", lambda x, y: vf.mmd(x, y), P, (7, D)),
    "mmd, rbf": _plain(
        "mmd", lambda x, y: vf.mmd(x, y, kernel="rbf", scales=[1.0, 2.0], unbiased=False), P, (7, D)
    ),
    "tril_sample_kl": _plain(
        "tril_sample_kl",
        lambda m, t: vf.tril_sample_kl(m, torch.tril(t, -1) + torch.eye(D, dtype=t.dtype), seed=3),
        P, ("B", D, D),
    ),
}  # fmt: skip

BOUNDS = {
    "iwae": {}, "dreg": {}, "stl": {}, "ciwae": {"beta": 0.3}, "miwae": {"groups": 2},
    "piwae": {"groups": 2}, "renyi": {"alpha": 0.7},
}  # fmt: skip
OPERATORS |= {
    f"importance_loss, {bound}": _plain(
        "importance_loss",
        lambda w, b=bound, s=settings: vf.importance_loss(w, bound=b, **s),
        (4, "B"),
    )
    for bound, settings in BOUNDS.items()
}


def _elementwise() -> dict[str, TracedCall]:
    found = {}
    for case in likelihood_cases.ALL:
        learned = case.scalar is not None

        def tensors(batch: int, case: Any = case, learned: bool = learned) -> tuple[Tensor, ...]:
            rng = random.Random(int(torch.randint(2**31, ())))
            made = [*case.params((batch, X), rng), case.target((batch, X), rng)]
            if learned:
                made.insert(-1, torch.tensor(0.7))
            return tuple(t.float() for t in made)

        def call(*t: Tensor, case: Any = case, learned: bool = learned) -> Tensor:
            params = t[0] if case.count == 1 else t[: case.count]
            return vf.nll(params, t[-1], case.build(t[-2] if learned else None))

        batch = (*(0,) * case.count, *(None,) * learned, 0)
        found[f"nll, {case}"] = TracedCall("nll", call, tensors, batch, case.count + learned)
    return found


def _rows() -> dict[str, TracedCall]:
    targets: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
        "categorical": lambda b: (torch.randn(b, X), torch.randint(X, (b,))),
        "multinomial": lambda b: (torch.randn(b, X), torch.randint(4, (b, X))),
        "discretized_logistic_mixture": lambda b: (
            torch.randn(b, 100, 2),
            torch.randint(256, (b, 3, 2), dtype=torch.uint8),
        ),
    }
    return {
        f"nll, {name}": TracedCall(
            "nll", lambda p, x, n=name: vf.nll(p, x, n), targets[name], (0, 0), 1
        )
        for name in likelihoods.registered_rows()
    }


LIKELIHOODS = {**_elementwise(), **_rows()}
ALL = {**OPERATORS, **LIKELIHOODS}


def public_operators() -> set[str]:
    """The functions of `vaefast.__all__` that stand in `vaefast.ops`."""
    return {
        name
        for name in vf.__all__
        if inspect.isfunction(value := getattr(vf, name))
        and value.__module__.startswith("vaefast.ops")
    }


def _mean(v: float, m: Tensor) -> Any:
    return vf.nll(m, torch.zeros_like(m), vf.Gaussian(std=v))


# What people change from step to step: the setting's value is the function's first argument.
INTEGERS = {"rsample offset", "tc_terms dataset_size", "tc_terms dataset_size of mws"}
SETTINGS: dict[str, tuple[Call, tuple[Any, ...]]] = {
    "rsample temperature": (lambda v, m, s: vf.rsample(m, s, seed=1, temperature=v), (P, P)),
    "rsample clamp": (lambda v, m, s: vf.rsample(m, s, seed=1, clamp=(-v, v)), (P, P)),
    "rsample soft clamp": (lambda v, m, s: vf.rsample(m, s, seed=1, clamp=("soft", -v, v)), (P, P)),
    "rsample min_std": (
        lambda v, m, s: vf.rsample(m, s, seed=1, param="softplus", min_std=v), (P, P)),
    "rsample offset": (lambda v, m, s: vf.rsample(m, s, seed=1, offset=v), (P, P)),
    "sample_kl temperature": (lambda v, m, s: vf.sample_kl(m, s, seed=1, temperature=v), (P, P)),
    "sample_kl clamp": (lambda v, m, s: vf.sample_kl(m, s, seed=1, clamp=(-v, v)), (P, P)),
    "sample_kl Monte Carlo temperature": (
        lambda v, m, s: vf.sample_kl(m, s, seed=1, temperature=v, estimator="monte_carlo"), (P, P)),
    "gaussian_kl clamp": (lambda v, m, s: vf.gaussian_kl(m, s, clamp=(-v, v)), (P, P)),
    "gaussian_kl min_std": (
        lambda v, m, s: vf.gaussian_kl(m, s, param="softplus", min_std=v), (P, P)),
    "gaussian_kl free_bits": (lambda v, m, s: vf.gaussian_kl(m, s, free_bits=v), (P, P)),
    "gaussian_kl balance": (
        lambda v, m, s, p: vf.gaussian_kl(m, s, p, balance=v), (P, P, P)),
    "nll Gaussian std": (_mean, (("B", X),)),
    "nll Laplace scale": (
        lambda v, m: vf.nll(m, torch.zeros_like(m), vf.Laplace(scale=v)), (("B", X),)),
    "nll StudentT df": (
        lambda v, m: vf.nll(m, torch.zeros_like(m), vf.StudentT(df=v)), (("B", X),)),
    "nll StudentT scale": (
        lambda v, m: vf.nll(m, torch.zeros_like(m), vf.StudentT(scale=v)), (("B", X),)),
    "nll LogCosh scale": (
        lambda v, m: vf.nll(m, torch.zeros_like(m), vf.LogCosh(scale=v)), (("B", X),)),
    "linear_nll Gaussian std": (
        lambda v, h, w, x: vf.linear_nll(h, w, None, x, vf.Gaussian(std=v)), (P, (X, D), ("B", X))),
    "elbo_loss beta": (
        lambda v, p, m, s: vf.elbo_loss(
            p, torch.ones_like(p), m, s, likelihood="bernoulli", beta=v).loss, (("B", X), P, P)),
    "elbo_loss capacity": (
        lambda v, p, m, s: vf.elbo_loss(
            p, torch.ones_like(p), m, s, likelihood="bernoulli", capacity=v).loss,
        (("B", X), P, P)),
    "elbo_loss free_bits": (
        lambda v, p, m, s: vf.elbo_loss(
            p, torch.ones_like(p), m, s, likelihood="bernoulli", free_bits=v).loss,
        (("B", X), P, P)),
    "elbo_loss free_bits of samples": (
        lambda v, p, m, s: vf.elbo_loss(
            p, torch.ones_like(p), m, s, likelihood="bernoulli", free_bits=v,
            free_bits_per="sample").loss, (("B", X), P, P)),
    "elbo_loss free_bits of kl": (
        lambda v, p, k: vf.elbo_loss(
            p, torch.ones_like(p), kl=k.square(), likelihood="bernoulli", free_bits=v,
            free_bits_per="total").loss, (("B", X), ("B",))),
    "elbo_loss clamp": (
        lambda v, p, m, s: vf.elbo_loss(
            p, torch.ones_like(p), m, s, likelihood="bernoulli", clamp=(-v, v)).loss,
        (("B", X), P, P)),
    "log_weights clamp": (
        lambda v, p, z, m, s: vf.log_weights(
            p, torch.zeros_like(p[0]), z, m, s, likelihood="gaussian", clamp=(-v, v)),
        ((K, "B", X), Z, P, P)),
    "monte_carlo_kl clamp": (
        lambda v, z, m, s: vf.monte_carlo_kl(z, m, s, clamp=(-v, v)), (Z, P, P)),
    "importance_loss alpha": (
        lambda v, w: vf.importance_loss(w, bound="renyi", alpha=v), ((4, "B"),)),
    "importance_loss beta": (
        lambda v, w: vf.importance_loss(w, bound="ciwae", beta=v), ((4, "B"),)),
    "tc_terms dataset_size": (
        lambda v, z, m, s: vf.tc_terms(z, m, s, dataset_size=v).tc, (P, P, P)),
    "tc_terms dataset_size of mws": (
        lambda v, z, m, s: vf.tc_terms(z, m, s, dataset_size=v, method="mws").tc, (P, P, P)),
    "tc_terms TCLoss beta": (lambda v, z, m, s: vf.nn.TCLoss(9, beta=v)(z, m, s).loss, (P, P, P)),
    "tc_terms clamp": (
        lambda v, z, m, s: vf.tc_terms(z, m, s, dataset_size=100, clamp=(-v, v)).tc, (P, P, P)),
    "mixture_log_prob clamp": (
        lambda v, z, m, s: vf.mixture_log_prob(z, m, s, clamp=(-v, v)), (P, (4, D), (4, D))),
    "mmd scales": (lambda v, x, y: vf.mmd(x, y, scales=(v, 2 * v)), (P, (7, D))),
    "mmd rbf scales": (
        lambda v, x, y: vf.mmd(x, y, kernel="rbf", scales=(v, 2 * v)), (P, (7, D))),
    "tril_sample_kl temperature": (
        lambda v, m, t: vf.tril_sample_kl(
            m, torch.tril(t, -1) + torch.eye(D), seed=1, temperature=v), (P, ("B", D, D))),
}  # fmt: skip
