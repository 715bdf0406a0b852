"""A training step measured in fresh processes, and counted: what is made of the figures."""

import json
import types

import pytest
from test_benchmarks import load


def test_processes_take_turns_and_the_ratio_is_eagers_by_ours(monkeypatch):
    processes = load("step_processes")
    started = []

    def run(command, **settings):
        started.append(command[command.index("--measure") + 1])
        seconds = {"eager": 3.0, "vaefast-native": 2.0}[started[-1]]
        return types.SimpleNamespace(stdout=f"{seconds}\n")

    monkeypatch.setattr(processes.subprocess, "run", run)
    found = processes.run("a step", 4, 1, 1)
    assert started == ["vaefast-native", "eager", "eager", "vaefast-native"] * 2
    assert found["eager by vaefast"] == {"ratio": 1.5, "low": 1.5, "high": 1.5}
    assert len(found["seconds"]) == 4


def test_a_process_measures_its_step():
    processes, models = load("step_processes"), load("bench_models")
    assert processes.measure(models.mlp().small(), "eager", 2) > 0


def test_what_a_step_takes_above_its_limit_is_counted_in_its_operators():
    counted = load("step_instructions")
    counts = {"eager": 90.0, "vaefast-native": 60.0, "limit": 50.0, "operators": 8.0}
    assert counted.above(counts) == 1.25
    assert [c.label for c in counted.chosen(["MLP"])] == [load("bench_models").mlp().label]
    if counted.RESULT.exists():
        labels = {c.label for c in counted.chosen([])}
        for label, kept in json.loads(counted.RESULT.read_text())["steps"].items():
            assert label in labels
            assert kept.keys() == counts.keys()
            assert kept["limit"] < kept["vaefast-native"] == pytest.approx(kept["eager"], rel=10)
