"""One call of every public operator and of every registered likelihood, for the tracer sweep.

An operator's lie in its file of tests/operators/, the likelihoods' are found by walking their
registries; one without a call fails loudly.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import likelihood_cases
import operators
import torch
from torch import Tensor
from traced_call import Call, TracedCall, X

import vaefast as vf
from vaefast import likelihoods

# Estimates that are evaluated, not trained: loops in Python over the operators below.
LOOPS = {"annealed_log_weights", "log_marginal"}


def outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def loss(case: TracedCall, tensors: tuple[Tensor, ...]) -> Tensor:
    """A scalar of what can be differentiated."""
    found = [o for o in outputs(case.call(*tensors)) if o.is_floating_point()]
    return sum((o * (1 + i)).square().sum() for i, o in enumerate(found))


OPERATORS: dict[str, TracedCall] = {
    f"{name}, {variant}" if variant else name: call
    for name, own in operators.found().items()
    for variant, call in own.TRACED.items()
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
        found[f"nll, {case}"] = TracedCall(call, tensors, batch, case.count + learned)
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
        f"nll, {name}": TracedCall(lambda p, x, n=name: vf.nll(p, x, n), targets[name], (0, 0), 1)
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


INTEGERS = {"rsample offset", "tc_terms dataset_size", "tc_terms dataset_size of mws"}
SETTINGS: dict[str, tuple[Call, tuple[Any, ...]]] = {
    f"{name} {setting}": call
    for name, own in operators.found().items()
    for setting, call in own.SETTINGS.items()
}
