"""What a step takes above its limit, of rounds in which the machine is now slow and now quick."""

import random

import pytest
from test_benchmark_steps import entry
from test_benchmarks import load

harness = load("harness")


def drifting(factor=1.0):
    """Seconds of 40 rounds: 100, a limit of 95 and operators of 4, slower by up to a half."""
    draw = random.Random(1)
    slow = [1 + 0.5 * draw.random() for _ in range(40)]
    noise = lambda: 1 + 0.002 * draw.random()  # noqa: E731
    each = {"mine": 95 + 5 * factor, "limit": 95.0, "unit": 4.0}
    return {n: harness.summarize([t * s * noise() for s in slow]) for n, t in each.items()}


def test_it_is_of_the_same_rounds():
    times = drifting()
    ratio, low, high = harness.above(times["mine"], times["limit"], times["unit"])
    assert low <= ratio <= high
    assert ratio == pytest.approx(1.25, rel=0.1)
    assert low > 1.2 * 0.9 and high < 1.25 * 1.2
    assert harness.above(times["limit"], times["limit"], times["unit"]) == (0, 0, 0)


def test_the_report_says_how_sure_it_is():
    report = load("report")
    case = entry()
    found = case["passes"]["step"]["implementations"]["vaefast-native"]
    found["above"] = [1.31, 1.1, 1.52]
    what, wanted, got, _, reached = next(iter(report.verdicts(case)))
    assert "above the limit" in what
    assert (wanted, got, reached) == ("≤ 1.2x", "1.31x (1.1 – 1.52)", False)
    found["above"] = [0.9, 0.4, 1.3]
    assert next(iter(report.verdicts(case)))[4]


@pytest.mark.slow
def test_a_run_keeps_it():
    import torch

    case = load("bench_models").mlp()
    found = load("record").run_case(
        case, torch.device("cpu"), quick=True, rounds=1, budget=0.0, with_memory=False
    )
    figures = found["passes"]["step"]["implementations"]
    for name in ("vaefast-native", "both"):
        ratio, low, high = figures[name]["above"]
        assert low <= ratio <= high
    assert "above" not in figures["eager"]
