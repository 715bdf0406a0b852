"""Benchmarks of whole training steps: their limit, and what the report says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_benchmarks import CPU, load

import vaefast as vf

# Of a step whose operators are 60% of the eager one.
TIMES = {
    "eager": 100.0,
    "compiled": 50.0,
    "vaefast-native": 45.0,
    "both": 44.0,
    "limit": 40.0,
    "operators": 5.0,
}


def entry(**changed: float) -> dict[str, Any]:
    implementations = {
        name: {
            "median_us": median,
            "q1_us": median,
            "q3_us": median,
            "peak": {"bytes": 1 << 20, "by": "allocator"},
            "speedup": {other: TIMES[other] / median for other in ("eager", "compiled")},
        }
        for name, median in {**TIMES, **changed}.items()
    }
    part = {"clock": "wall", "moved": None, "allowed": 1024, "implementations": implementations}
    return {
        "name": "training step MLP",
        "op": "step",
        "commit": "abc",
        "dirty": False,
        "date": "2000-01-01",
        "targets": {},
        "passes": {"step": part},
    }


def test_every_row_is_there() -> None:
    names = [c.label for c in load("bench_models").cases()]
    wanted = (
        *("scVI", "Mult-VAE", "beta-TCVAE", "InfoVAE", "VampPrior", "IWAE", "MIWAE", "VDVAE"),
        *("Dreamer", "AutoencoderKL", "MLP"),
    )
    assert [next(w for w in wanted if n.startswith(w)) for n in names] == [*wanted]


def test_the_limit_calls_no_replaced_operation() -> None:
    models = load("bench_models")
    for case in models.cases():
        small = case.small()
        inputs = small.make(CPU)
        model, done = small._model(inputs), []

        def counted(operation: Callable[..., Any], done: list[int]) -> Callable[..., Any]:
            def call(*operands: torch.Tensor) -> Any:
                done.append(1)
                return operation(*operands)

            return models._handed_over(call)

        model.ops = {name: counted(pair.eager, done) for name, pair in model.replaced.items()}
        model(*inputs.data).backward()
        first = len(done)
        model(*inputs.data).backward()
        assert first > 0 and len(done) == first, case.label


def test_every_weight_gets_a_gradient_with_and_without() -> None:
    models = load("bench_models")
    for case in models.cases():
        small = case.small()
        inputs = small.make(CPU)
        for name in ("eager", "vaefast-native", "limit"):
            if name == "vaefast-native" and "native" not in vf.available_backends():
                continue
            model = small._model(inputs)
            if name == "vaefast-native":
                model.ops = {n: pair.fused for n, pair in model.replaced.items()}
            elif name == "limit":
                model.ops = {n: models._handed_over(p.eager) for n, p in model.replaced.items()}
            model(*inputs.data).backward()
            without = [n for n, p in model.named_parameters() if p.grad is None]
            assert not without, (case.label, name)


def test_what_is_allowed_is_outputs_and_gradients() -> None:
    (case,) = [c for c in load("bench_models").cases() if c.label.startswith("MLP")]
    inputs = case.make(CPU)
    # z, kl, and the gradients of mu and logvar; the loss, and those of logits and kl.
    latent, batch, logits = 128 * 20, 128, 128 * 784
    assert case.allowed("step", inputs) == 4 * (3 * latent + batch + 1 + logits + batch)


def test_verdicts() -> None:
    report = load("report")
    found = list(report.verdicts(entry()))
    assert [(what.split(": ")[1].split(",")[0], got, ok) for what, _, got, _, ok in found] == [
        ("time above the limit", "1x", True),
        ("speed-up over torch.compile", "1.11x", True),
        ("peak memory", "1 MiB", True),
    ]
    slow = {what: ok for what, *_, ok in report.verdicts(entry(**{"vaefast-native": 51.0}))}
    assert [*slow.values()] == [False, False, True]
    # Where the operators are no tenth of the step the compiler may be ahead.
    few = list(report.verdicts(entry(**{"vaefast-native": 99.0, "limit": 97.0})))
    assert len(few) == 2


def test_tables() -> None:
    report = load("report")
    table = report.step_table([entry()])
    row = table.splitlines()[-1]
    assert row.startswith(
        "| MLP | 100 µs | 50 µs | 45 µs | 44 µs | 40 µs | 60.0% | 2.22x | 1.11x |"
    )
    data = {"machine": {"device": "x"}, "cases": [entry()]}
    assert report.steps(data) == data["cases"]
    assert report.first_page(data) == data["cases"] and not report.operators(data)


@pytest.mark.slow
def test_a_step_is_measured_from_end_to_end() -> None:
    record, case = load("record"), load("bench_models").mlp()
    found = record.run_case(case, CPU, quick=True, rounds=1, budget=1.0, with_memory=True)
    assert not found["failed"]
    part = found["passes"]["step"]
    for figures in part["implementations"].values():
        assert figures["median_us"] > 0
        assert figures["peak"]["by"] == "allocator" and figures["peak"]["bytes"] >= 0
