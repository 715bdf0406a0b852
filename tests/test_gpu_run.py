"""The GPU's run and the GPU's tests, as far as a machine without a GPU shows them."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from program import python
from test_benchmarks import load

import vaefast as vf

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
on_cpu = pytest.mark.skipif("native" not in vf.available_backends(), reason="needs _C")


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """An environment in which nothing can be installed: no network, no pip, an old setuptools."""
    stubs = tmp_path / "stubs"
    for name, text in {
        "setuptools": "__version__ = '65.0'\nraise ImportError('setuptools 65 is not asked for')",
        "pip": "raise ImportError('there is nothing to install')",
    }.items():
        (stubs / name).mkdir(parents=True)
        (stubs / name / "__init__.py").write_text(text + "\n")
    closed = "http://127.0.0.1:9"
    monkeypatch.setenv("PYTHONPATH", str(stubs))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, closed)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.delenv("VAEFAST_BACKEND", raising=False)


def gpu_sh(out: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Its exit status, results.json and what it printed."""
    script = str(ROOT / "benchmarks" / "gpu.sh")
    done = subprocess.run(
        [script, "--dry-run", "--minutes", "30", "--out", str(out), *arguments],
        capture_output=True,
        text=True,
    )
    path = out / "results.json"
    assert path.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(path.read_text()), done.stdout + done.stderr


def compiled() -> str:
    from vaefast import _C

    return str(_C.__file__)


@on_cpu
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_case_that_raises_ends_nothing_and_is_the_exit_status(bare, tmp_path):
    broken = "sample_kl 3x4x5x5 forward"
    status, data, text = gpu_sh(tmp_path / "out", "--module", compiled(), "--fail", broken)
    assert status == 1, text
    stages = {stage["name"]: stage for stage in data["stages"]}
    assert list(stages) == list(load("gpu_run").LIMITS)
    states = {name: stage["state"] for name, stage in stages.items()}
    assert states.pop("sanitizer") == "skipped"
    assert states.pop("streams") == "failed"
    assert set(states.values()) == {"passed"}, text
    cases = {case["name"]: case for case in stages["streams"]["cases"]}
    assert len(cases) == 16
    assert [n for n, c in cases.items() if c["failed"]] == [broken]
    assert "asked to fail" in cases[broken]["failed"]
    assert stages["tests"]["counts"]["passed"] > 10
    assert data["machine"]["torch"] == torch.__version__
    assert len(stages["smoke"]["cases"]) == 2 * len(load("operators").operators())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["results.json", "run.log"]


@on_cpu
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cmake_alone_builds_what_is_used(bare, tmp_path):
    """No pip, no setuptools: minutes where no compiler cache knows the sources."""
    pytest.importorskip("pybind11")
    status, data, text = gpu_sh(tmp_path / "out", "--stages", "build")
    assert status == 0, text
    (stage,) = data["stages"]
    names = [case["name"] for case in stage["cases"]]
    assert names == ["configure", "compile", "the native backend serves"], text


@on_cpu
@pytest.mark.slow
def test_a_stage_that_hangs_is_ended_and_its_cases_are_kept(tmp_path):
    run = load("gpu_run")
    lines: list[str] = []
    hangs = "import time; print('@case 1', flush=True); time.sleep(60)"
    (ended,) = run.processes([python(hangs)], 3.0, lines.append, dict(os.environ), tmp_path)
    assert ended.status is None and lines == ["@case 1"]


def test_a_program_that_is_not_there_is_a_failure(tmp_path):
    run = load("gpu_run")
    (ended,) = run.processes([["no-such-program"]], 3.0, print, dict(os.environ), tmp_path)
    assert ended.status == 127


class StandIn:
    """What the measuring asks of torch.cuda: graphs that hold nothing, events that read a clock."""

    class CUDAGraph:
        def replay(self) -> None:
            time.sleep(1e-5)

    class Stream:
        def wait_stream(self, other: object) -> None: ...

    class Event:
        def __init__(self, enable_timing: bool = False) -> None: ...

        def record(self) -> None:
            self.at = time.perf_counter()

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Any) -> float:
            return float(1e3 * (end.at - self.at))

    @staticmethod
    def get_device_properties(device: object) -> Any:
        return types.SimpleNamespace(
            major=9,
            minor=0,
            multi_processor_count=132,
            L2_cache_size=1 << 10,
            total_memory=1 << 30,
        )


@pytest.fixture
def stage(monkeypatch):
    """A stage of a GPU's run, whose GPU is the CPU."""
    for name in ("CUDAGraph", "Stream", "Event", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, getattr(StandIn, name))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", StandIn.Stream)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 1 << 30))
    for name in ("synchronize", "empty_cache", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    stages = load("gpu_stages")
    monkeypatch.setattr(stages, "BYTES", 8_000_000)
    monkeypatch.setattr(stages, "BATCHES", (24, 40))
    args = argparse.Namespace(
        dry_run=False, shard="0/1", fail="", backend="native", label="call", of="streams"
    )
    made = stages.Stage(args)
    made.device, made.compiler = torch.device("cpu"), "aot_eager"
    return made


@on_cpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["machine", "smoke", "call", "streams", "launches", "pairs"])
def test_the_stages_of_a_gpu_with_a_stand_in(stage, name, capfd):
    """That what a GPU's run does runs: of a GPU's own behaviour it shows nothing."""
    stages = load("gpu_stages")
    stages.STAGES[name](stage)
    lines = capfd.readouterr().out.splitlines()
    cases = [json.loads(x.partition(" ")[2]) for x in lines if x.startswith("@case ")]
    assert cases and not any(case["failed"] for case in cases), cases
    if name in ("streams", "launches", "pairs"):
        for case in cases:
            assert "vaefast-native" in case["implementations"], case
    if name == "streams":
        assert len(cases) == 16
        for case in cases:
            assert "copy_" in case["implementations"] and case["cold"], case
            if case["name"].endswith("backward"):
                assert case["moved"] == pytest.approx(8_000_000, rel=0.1)
    if name == "launches":
        assert all("graph_us" in f for f in cases[0]["implementations"].values())


@on_cpu
@pytest.mark.slow
@pytest.mark.parametrize("of", ["streams", "launches", "pairs"])
def test_what_is_compiled_beforehand(stage, of, capfd):
    stage.args.of = of
    load("gpu_stages").STAGES["warm"](stage)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) >= 5 and all(line.endswith("is compiled") for line in lines)


def test_a_report_leaves_a_runs_results_aside(tmp_path):
    report = load("report")
    whole = {"machine": {"quick": False, "kind": "cpu"}, "cases": []}
    (tmp_path / "cpu.json").write_text(json.dumps(whole))
    run = {"format": 1, "machine": {}, "stages": [{"name": "build", "cases": []}]}
    (tmp_path / "gpu.json").write_text(json.dumps(run))
    assert list(report.load(tmp_path)) == ["cpu"]


# Names that tests give the backends; the second are the files that compile Triton's kernels.
BACKENDS = ("native-cuda", "triton-cuda")


@pytest.fixture(scope="module")
def collected():
    """The tests that `-m gpu` has where there is a GPU: one is pretended."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    code = (
        "import sys, torch, pytest;"
        "torch.cuda.is_available = lambda: True;"
        "torch.cuda.device_count = lambda: 1;"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = python(code, "--collect-only", "-q", "-m", "gpu")
    command += [
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    done = subprocess.run(
        [*command, str(ROOT / "tests")],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


# The file of an operator's tests, where it is not test_<operator>.py; a file of several operators
# counts for the tests that name it.
ALSO = {
    "mmd": ("test_pairs.py", "mmd"),
    "tc_terms": ("test_pairs.py", "tc_terms"),
    "mixture_log_prob": ("test_pairs.py", "mixture"),
    "log_weights": ("test_pairs.py", "log_weights"),
    "monte_carlo_kl": ("test_pairs.py", "monte_carlo_kl"),
}
# Of plain PyTorch: no kernel of theirs is to be tested on a device.
COMPOSED = {"annealed_log_weights", "importance_loss", "log_marginal", "tril_sample_kl"}


@pytest.mark.slow
def test_every_operator_has_gpu_tests_on_every_backend(collected):
    assert len(collected) > 3000
    public = {
        name
        for name in vf.__all__
        if inspect.isfunction(getattr(vf, name)) and ".ops." in getattr(vf, name).__module__
    }
    counts: Counter[tuple[str, str]] = Counter()
    for operator in public:
        places = [(f"test_{operator}.py", ""), ALSO.get(operator, ("", ""))]
        for test in collected:
            file, _, name = test.partition("::")
            here = any(
                Path(file).name == where and what in name.partition("[")[0]
                for where, what in places
                if where
            )
            if here:
                counts.update((operator, b) for b in BACKENDS if b in name)
    missing = {
        (operator, backend)
        for operator in public - COMPOSED
        for backend in BACKENDS
        if not counts[operator, backend]
    }
    assert not missing, f"no GPU test of {sorted(missing)}"


@pytest.mark.slow
@pytest.mark.parametrize("dims", [33, 64, 131])
def test_wide_points_are_among_them(collected, dims):
    """More dimensions than a part has, in both precisions, by both estimators of the weights."""
    for backend in BACKENDS:
        for dtype in ("float64", "float32"):
            for method in ("mss", "mws"):
                named = [
                    t
                    for t in collected
                    if "test_pairs.py::test_tc_terms[" in t
                    and re.search(rf"\b{dims}\)", t)
                    and all(part in t for part in (backend, dtype, method))
                ]
                assert named, (backend, dtype, method)


@pytest.mark.slow
def test_no_operator_waits_is_among_them(collected):
    """Also on the GPU itself, where torch watches for what waits."""
    from test_no_waits import OPERATORS

    waits = [t for t in collected if "test_gpu.py::test_no_operator_waits" in t]
    assert len(waits) == 2 * len(OPERATORS)
