"""The benchmark harness: its statistics, its registry of cases, its counts and its report."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

import vaefast as vf
from vaefast import likelihoods

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def load(name: str) -> ModuleType:
    """A module of the benchmarks, which are not installed."""
    if "benchmarks" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "benchmarks", ROOT / "benchmarks" / "__init__.py"
        )
        assert spec is not None and spec.loader is not None
        sys.modules["benchmarks"] = package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
    return importlib.import_module(f"benchmarks.{name}")


def test_summary_is_median_and_quartiles() -> None:
    summary = load("harness").summarize([5.0, 1.0, 2.0, 4.0, 3.0], batch=7)
    assert summary == (3.0, 2.0, 4.0, 5, 7, None, (5.0, 1.0, 2.0, 4.0, 3.0))


def test_ratios_are_of_medians() -> None:
    harness, record = load("harness"), load("record")
    seconds = {"eager": [8e-6] * 9 + [1.0], "vaefast-native": [2e-6], "copy_": [1e-6]}
    found = record.figures({n: harness.summarize(s) for n, s in seconds.items()}, 100, 4000)
    ours = found["vaefast-native"]
    assert ours["speedup"] == {"eager": 4.0}
    assert ours["floors"] == 2.0
    assert ours["gb_per_s"] == 2.0
    assert ours["ns_per_element"] == 20.0
    assert "speedup" not in found["copy_"]


def test_calls_take_turns_equally_often() -> None:
    harness, case = load("harness"), load("case")
    order: list[str] = []
    calls = {n: case.Call(lambda n=n: order.append(n), "reference") for n in "abc"}
    times = harness.interleaved(calls, rounds=5, sample=0.0)
    assert all(t.rounds == 5 and t.batch == 1 for t in times.values())
    rounds = [order[-15:][i : i + 3] for i in range(0, 15, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(map(tuple, rounds))) > 1


def test_the_first_call_of_a_batch_is_timed_by_itself() -> None:
    harness, case = load("harness"), load("case")
    since = [0.0]

    def slow_at_first() -> None:
        if time.perf_counter() - since[0] > 0.02:
            time.sleep(0.01)
        since[0] = time.perf_counter()

    def other() -> None:
        time.sleep(0.03)

    calls = {"a": case.Call(slow_at_first, "reference"), "b": case.Call(other, "reference")}
    times = harness.interleaved(calls, rounds=3, sample=1e-3)
    assert times["a"].batch > 1
    assert times["a"].first > 0.01 > 2 * times["a"].median


def test_what_fails_is_told_and_ends_nothing() -> None:
    harness, case = load("harness"), load("case")

    def fails() -> None:
        raise RuntimeError("no compiler here")

    calls = {
        "compiled": case.Call(fails, "reference"),
        "ours": case.Call(fails, "auto"),
        "runs": case.Call(lambda: None, "auto"),
    }
    cause = "RuntimeError: no compiler here"
    assert harness.warm_up(calls) == {"compiled": cause, "ours": cause}


def test_case_names_are_unique_and_every_likelihood_has_a_case() -> None:
    cases = load("cases")
    names = [c.name for c in cases.collect()]
    assert len(set(names)) == len(names)
    for name in likelihoods.registered():
        assert any(n.startswith(f"nll {name} ") for n in names), name
    with pytest.raises(ValueError, match="no case's name contains"):
        cases.collect("no such operator")


def test_a_new_likelihood_has_cases_of_its_own() -> None:
    @likelihoods.register("shifted_laplace")
    @dataclasses.dataclass(frozen=True, eq=False)
    class ShiftedLaplace(likelihoods.Laplace):
        param_names: ClassVar[tuple[str, ...]] = ("loc", "scale")

        def positive_params(self) -> frozenset[str]:
            return frozenset({"scale"})

    found = load("cases").collect("nll shifted_laplace")
    assert [c.shape for c in found] == [(128, 784), (64, 3, 128, 128)]
    small = found[0].small()
    inputs = small.make(CPU)
    assert len(inputs.leaves) == 2 and float(inputs.leaves[1].detach().min()) > 0
    # Its eager formula is the library's own, on the reference backend.
    assert list(small.formulas) == ["eager"]
    small.check(inputs, CPU)


@pytest.mark.parametrize(
    "op", ["sample_kl", "rsample", "gaussian_kl", "elbo_loss", "nll", "log_weights", "step"]
)
def test_implementations_agree_at_a_small_size(op: str) -> None:
    torch.manual_seed(0)
    for case in load("cases").collect(op):
        small = case.small()
        small.check(small.make(CPU), CPU)


def test_a_wrong_formula_is_found() -> None:
    (case,) = load("cases").collect("nll laplace 128x784")
    small = case.small()
    right = small.formulas["eager"]
    wrong = {**small.formulas, "eager": lambda *tensors: (right(*tensors)[0] * 1.01,)}
    with pytest.raises(AssertionError, match="against eager"):
        dataclasses.replace(small, formulas=wrong).check(small.make(CPU), CPU)


def test_bytes_of_sampling_and_of_a_likelihood() -> None:
    cases, case = load("cases"), load("case")
    (sampling,) = cases.collect("sample_kl 128x20")
    inputs = sampling.make(CPU)
    elements = 128 * 20
    # Two scalars at most stand beside the tensors: the loss and its gradient.
    assert sampling.moved(case.FORWARD, inputs) == 3 * 4 * elements + 4
    assert abs(sampling.moved(case.BOTH, inputs) - 8 * 4 * elements) <= 8
    assert sampling.allowed(case.BOTH, inputs) == 3 * 4 * elements + 4
    (pixels,) = cases.collect("nll bernoulli uint8")
    small = pixels.small()
    inputs = small.make(CPU)
    count = inputs.leaves[0].numel()
    assert small.moved(case.BOTH, inputs) == (4 + 1 + 4) * count + 4
    assert small.allowed(case.FORWARD, inputs) == 4


def test_allocator_peak_counts_what_is_alive_at_once() -> None:
    def run() -> torch.Tensor:
        a = torch.ones(1 << 16)
        b = a + 1
        del a
        return b * 2

    # Beside two of the three: the numbers 1 and 2 as scalar tensors.
    assert 0 <= load("memory").allocated(run) - (2 * 4 << 16) <= 32


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_peak_sees_freed_memory() -> None:
    size = 64 << 20

    def run() -> None:
        bytearray(b"x") * size

    found = load("memory").resident(run)
    # The kernel counts a process's pages in batches.
    assert abs(found - size) <= 2 << 20


@pytest.fixture
def result() -> dict[str, Any]:
    """A small result file: a 4x speed-up, 1.5x the floor, and as much memory as is returned; the
    fused kernel's first calls take twice their median."""

    def figures(median: float, peak: int) -> dict[str, Any]:
        speedup = {"eager": 40.0 / median, "compiled": 20.0 / median}
        return {
            "median_us": median,
            "q1_us": median,
            "q3_us": median,
            "ns_per_element": median,
            "gb_per_s": 1.0,
            "speedup": speedup,
            "floors": median / 6.6667,
            "peak": {"bytes": peak, "by": "allocator"},
        }

    implementations = {
        "eager": figures(40.0, 3072),
        "compiled": figures(20.0, 2048),
        "vaefast-native": figures(10.0, 1024) | {"first_us": 20.0},
        "copy_": {"median_us": 6.6667, "q1_us": 6.0, "q3_us": 7.0, "first_us": 8.0},
    }
    implementations["eager"]["first_us"] = 40.0
    part = {"clock": "wall", "moved": 100, "allowed": 1024, "implementations": implementations}
    machine = {
        "device": "Some CPU",
        "kind": "cpu",
        "threads": 2,
        "capability": "avx2",
        "torch": "2",
        "python": "3",
        "vaefast": "1",
        "triton": None,
        "quick": False,
    }
    entry = {
        "name": "sample_kl 4x4",
        "op": "sample_kl",
        "commit": "abc",
        "dirty": False,
        "date": "2000-01-01",
        "targets": {"eager": 3.0, "compiled": 2.5, "copy_": 2.0},
        "passes": {"forward": part, "forward+backward": part},
        "capabilities": {"default": {"forward+backward": part}},
    }
    return {"machine": machine, "cases": [entry]}


def test_verdicts(result: dict[str, Any]) -> None:
    verdicts = list(load("report").verdicts(result["cases"][0]))
    assert [found[1:] for found in verdicts] == [
        ("≥ 3x", "4x", "2x", True),
        ("≥ 2.5x", "2x", "–", False),
        ("≤ 2x", "1.5x", "2.5x", True),
        ("≤ 1 KiB", "1 KiB", "", True),
    ]


def test_report_rewrites_what_is_between_the_markers(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    pytest.importorskip("matplotlib")
    report = load("report")
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    for name, quick in (("some-cpu", False), ("other", True)):
        result["machine"]["quick"] = quick
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(result))
    documents = [tmp_path / "README.md", tmp_path / "docs" / "benchmarks.md"]
    for path in documents:
        path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write(tmp_path / "results", tmp_path)
    row = "| sample_kl 4x4 | 40 µs | 20 µs | – | 10 µs | 4x | 2x | 1.5x | 3 KiB | 1 KiB |"
    for path in documents:
        text = path.read_text()
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| sample_kl 4x4 | 40 µs | 20 µs | 10 µs | 4x | 2x | 3 KiB | 1 KiB |" in (
        documents[0].read_text()
    )
    assert row in documents[1].read_text()
    assert "| sample_kl 4x4 | 10 µs (4x) | 10 µs (4x) |" in documents[1].read_text()
    pictures = {p.name for p in (tmp_path / "docs" / "img").iterdir()}
    assert pictures == {f"{k}-some-cpu.png" for k in ("speed", "speed-all", "memory-all")}


def test_the_first_page_is_short_and_begins_with_training_steps(result: dict[str, Any]) -> None:
    report = load("report")
    (entry,) = result["cases"]
    step = {**entry, "name": "a step", "passes": {"step": entry["passes"]["forward"]}}
    named = [{**entry, "name": name} for name in report.FIRST_PAGE]
    others = [{**entry, "name": f"other {i}"} for i in range(20)]
    old = {**result, "cases": [*others, *named, step]}
    shown = [e["name"] for e in report.first_page(old)]
    assert shown == ["a step", *report.FIRST_PAGE]
    new = {**result, "cases": [{**entry, "date": "2001-01-01"}]}
    assert report.last_measured({"a": old, "b": new})[0] == "b"


def test_sizes_are_plotted_against_the_batch(tmp_path: Path, result: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    plots = load("plots")
    (entry,) = result["cases"]
    shapes = [(64, 8), (16, 8), (32, 8), (16, 9)]
    entries = [{**entry, "op": "tc_terms", "shape": shape} for shape in shapes]
    path = tmp_path / "batch.png"
    assert plots.sweep(result["machine"], entries, "tc_terms", path) and path.stat().st_size
    assert not plots.sweep(result["machine"], entries[:2], "tc_terms", path)
    assert not path.exists()


def test_report_says_what_is_missing(tmp_path: Path) -> None:
    report = load("report")
    with pytest.raises(ValueError, match="no results"):
        report.load(tmp_path)
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match="must hold the lines"):
        report.replace_section(tmp_path / "README.md", "text")


def test_results_of_another_machine_are_not_mixed(tmp_path: Path) -> None:
    record = load("record")
    path = tmp_path / "result.json"
    record.save(path, CPU, [{"name": "a", "value": 1}, {"name": "b", "value": 1}], True)
    record.save(path, CPU, [{"name": "a", "value": 2}], True)
    kept = {entry["name"]: entry["value"] for entry in json.loads(path.read_text())["cases"]}
    assert kept == {"a": 2, "b": 1}
    with pytest.raises(ValueError, match="quick"):
        record.save(path, CPU, [], False)


def test_a_missing_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    record = load("record")
    monkeypatch.delenv("VAEFAST_BACKEND", raising=False)
    monkeypatch.setattr(record.vf, "available_backends", lambda device: ("reference",))
    with pytest.raises(RuntimeError, match="no compiled core"):
        record.require_core()
    monkeypatch.setenv("VAEFAST_BACKEND", "reference")
    record.require_core()


def test_a_case_is_measured_from_end_to_end() -> None:
    (case,) = load("cases").collect("gaussian_kl 128x20")
    found = load("record").run_case(case, CPU, quick=True, rounds=2, with_memory=False)
    both = found["passes"]["forward+backward"]
    names = {"eager", "distributions", "compiled", "copy_"}
    assert names < set(both["implementations"])
    assert not any("error" in f for f in both["implementations"].values())
    assert both["moved"] == (2 + 2 + 2) * 4 * 25 + 4
    assert vf.__version__ == load("record").machine(CPU)["vaefast"]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (("--only", "nosuch"), "no case's name contains nosuch"),
        (("--exactly", "nosuch"), "no case has a name of ['nosuch']"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_a_wrong_option_is_one_line(
    option: tuple[str, str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "run", "--quick", *option])
    with pytest.raises(SystemExit) as stop:
        load("__main__").main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_two_versions_are_compared(tmp_path: Path) -> None:
    """Here one with itself."""
    out = tmp_path / "out.json"
    script = str(Path(__file__).parent.parent / "benchmarks" / "compare.py")
    command = [sys.executable, script, "--before", sys.executable, "--after", sys.executable]
    command += ["--exactly", "sample_kl 128x20", "--rounds", "1", "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(out.read_text())
    assert list(found) == ["sample_kl 5x5, forward", "sample_kl 5x5, forward+backward"]
    for one in found.values():
        assert one["low"] <= one["ratio"] <= one["high"] and one["before"] > 0
