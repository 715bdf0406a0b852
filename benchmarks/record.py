"""Runs cases and keeps the figures: one JSON file per machine."""

from __future__ import annotations

import datetime
import gc
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import vaefast as vf
from vaefast import backends

from . import ROOT, gpu, memory
from .case import (
    BOTH,
    COMPILED,
    EAGER,
    FUSED,
    LIMIT,
    OPERATORS,
    TOGETHER,
    Call,
    Case,
    fused_backends,
)
from .harness import FLOOR, SAMPLE, Summary, above, copy_floor, interleaved, warm_up

RESULTS = ROOT / "benchmarks" / "results"
SOURCES = ("vaefast", "csrc", "setup.py", "benchmarks/*.py")
# Of a CUDA case that does not fit the L2: 90% of the bandwidth of copy_, and over the compiler.
CUDA_TARGETS = {COMPILED: 1.15, FLOOR: 1 / 0.9}

Entry = dict[str, Any]


def require_core() -> None:
    """Raises RuntimeError where the compiled core that should be measured is not there."""
    asked = os.environ.get("VAEFAST_BACKEND", "auto")
    if asked == "auto" and "native" not in vf.available_backends("cpu"):
        raise RuntimeError(
            f"vaefast, imported from {Path(vf.__file__).parent}, has no compiled core to measure: "
            f"{backends.unavailable('native', 'cpu')}. Install it (pip install .), or set "
            "VAEFAST_BACKEND=reference to measure the plain PyTorch backend."
        )


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures of a file depend on."""
    info = vf.info()
    native = info["native"]
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _cpu_name(),
        "kind": device.type,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": native.get("cpu_capability"),
        "native": {k: native.get(k) for k in ("compiler", "cuda_version", "cuda_archs")},
        "vaefast": vf.__version__,
        "torch": torch.__version__,
        "triton": info["triton"],
        "python": info["python"],
        "platform": platform.platform(),
    }


def default_path(device: torch.device) -> Path:
    """benchmarks/results/<device>-<threads>-threads.json, or <gpu>.json."""
    about = machine(device)
    name = re.sub(r"\((r|tm)\)", "", about["device"].lower())
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    tail = "" if device.type == "cuda" else f"-{about['threads']}-threads"
    return RESULTS / f"{slug}{tail}.json"


def run_case(
    case: Case,
    device: torch.device,
    *,
    quick: bool = False,
    rounds: int = 40,
    budget: float = 30.0,
    with_memory: bool = True,
    only: tuple[str, ...] = (),
) -> Entry:
    """Measures one case: checked for agreement first, then timed, then its memory.

    Args:
        quick: at a small size and with a compiler that generates nothing, to see that it runs.
        rounds, budget: as in `interleaved`, per pass.
        with_memory: peak memory too.
        only: implementations to take, all where empty.
    """
    compiler = "aot_eager" if quick else "inductor"
    timed = case.small() if quick else case
    # Otherwise a second size of the same formula would compile to dynamic shapes.
    torch._dynamo.reset()
    torch.manual_seed(0)
    inputs = timed.make(device)
    wrong: list[str] = []
    if not only:
        try:
            timed.check(inputs, device)
        except Exception as error:
            if device.type != "cuda":
                raise
            # A GPU is seldom had: what else there is of the case is still measured.
            wrong.append(f"{type(error).__name__}: {error}"[:400])
    targets = dict(case.targets) if device.type == "cpu" else {}
    passes: dict[str, Entry] = {}
    for what in case.passes:
        names = [n for n in timed.implementations(device) if not only or n in only]
        calls = {n: timed.call(n, what, inputs, compiler) for n in names}
        moved = timed.moved(what, inputs)
        if moved is not None:
            calls[FLOOR] = copy_floor(moved, device)
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        failed = warm_up(calls, wait)
        wrong += [f"{n}, {what}: {text}" for n, text in failed.items() if n.startswith(FUSED)]
        running = {n: c for n, c in calls.items() if n not in failed}
        sample = 0.0 if quick else SAMPLE
        times = interleaved(running, rounds=rounds, budget=budget, sample=sample, wait=wait)
        if device.type == "cuda":
            # A call returns before the device is done.
            times = {n: t._replace(first=None) for n, t in times.items()}
        entry: Entry = {"clock": "wall", "moved": moved, "allowed": timed.allowed(what, inputs)}
        extra: dict[str, Entry] = {n: {"error": text} for n, text in failed.items()}
        if device.type == "cuda" and timed.capturable:
            times, cold = _on_device(timed, what, device, rounds, compiler, running, times, extra)
            for name, more in extra.items():
                if name.startswith(FUSED) and name not in failed and "error" in more:
                    wrong.append(f"{name}, {what}: {more['error']}")
            entry |= {"clock": "device", "cold": cold}
            if what == BOTH and cold:
                targets = dict(CUDA_TARGETS)
        for name in [n for n in times if LIMIT in times and OPERATORS in times]:
            if name.startswith(FUSED) or name == TOGETHER:
                more = above(times[name], times[LIMIT], times[OPERATORS])
                extra.setdefault(name, {})["above"] = [_rounded(value) for value in more]
        entry["implementations"] = figures(times, timed.elements(inputs), moved, extra)
        passes[what] = entry
        if with_memory and not timed.apart and device.type == "cpu":
            for name, peak in memory.here(running).items():
                entry["implementations"].setdefault(name, {})["peak"] = peak
        del calls, running
        gc.collect()
    if with_memory and (timed.apart or device.type == "cuda"):
        for what, found in memory.peaks(case, device, quick).items():
            for name, peak in found.items():
                passes[what]["implementations"].setdefault(name, {})["peak"] = peak
    return {
        "name": case.name,
        "op": case.op,
        "shape": list(timed.shape),
        "dtype": "float32",
        "elements": timed.elements(inputs),
        "targets": targets,
        "passes": passes,
        # What of ours went wrong; the run that has such a case ends with an error.
        "failed": wrong,
        # More than this process's own threads would mean that something else was running.
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        **_source(),
    }


def _on_device(
    case: Case,
    what: str,
    device: torch.device,
    rounds: int,
    compiler: str,
    calls: Mapping[str, Call],
    wall: Mapping[str, Summary],
    extra: dict[str, Entry],
) -> tuple[dict[str, Summary], bool]:
    """The device's times, with the wall clock's kept beside them in `extra`."""
    times, failed, cold = gpu.device_times(case, what, device, rounds, compiler)
    for name, text in failed.items():
        extra.setdefault(name, {})["error"] = text
    for name, call in calls.items():
        extra.setdefault(name, {})["wall_us"] = _rounded(wall[name].median * 1e6)
        extra[name]["launches"] = gpu.launches(call)
    return times, cold


def figures(
    times: Mapping[str, Summary],
    elements: int,
    moved: int | None,
    extra: Mapping[str, Entry] | None = None,
) -> dict[str, Entry]:
    """Per implementation: times, what they amount to, and ratios of medians.

    `speedup` is over each baseline; `floors` is the time in multiples of the floor's.
    """
    baselines = [n for n in times if not n.startswith(FUSED) and n != FLOOR]
    result: dict[str, Entry] = {}
    for name, summary in times.items():
        entry: Entry = {
            "median_us": _rounded(summary.median * 1e6),
            "q1_us": _rounded(summary.q1 * 1e6),
            "q3_us": _rounded(summary.q3 * 1e6),
            "rounds": summary.rounds,
            "batch": summary.batch,
            "ns_per_element": _rounded(summary.median * 1e9 / max(elements, 1)),
        }
        if summary.first is not None:
            entry["first_us"] = _rounded(summary.first * 1e6)
        if moved is not None:
            entry["gb_per_s"] = _rounded(moved / summary.median * 1e-9)
        if name != FLOOR:
            entry["speedup"] = {
                other: _rounded(times[other].median / summary.median) for other in baselines
            }
            if FLOOR in times:
                entry["floors"] = _rounded(summary.median / times[FLOOR].median)
        result[name] = entry
    for name, more in (extra or {}).items():
        result.setdefault(name, {}).update(more)
    return result


def other_capabilities(names: list[str], settings: list[str]) -> dict[str, dict[str, Entry]]:
    """`{case: {capability: passes}}` on this CPU's other instruction sets, a process for each."""
    core: Any = importlib.import_module("vaefast._C")
    found: dict[str, dict[str, Entry]] = {}
    for capability in core.available_capabilities():
        if capability == core.cpu_capability():
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.json"
            command = [sys.executable, "-m", __package__, "run", "--out", str(out), *settings]
            command += ["--no-memory", "--no-capabilities", "--implementations", EAGER]
            command += [*fused_backends(torch.device("cpu")), "--exactly", *names]
            environment = {**os.environ, "VAEFAST_CPU_CAPABILITY": capability}
            subprocess.run(command, cwd=ROOT, env=environment, check=True)
            result = json.loads(out.read_text())
        assert result["machine"]["capability"] == capability, result["machine"]
        for case in result["cases"]:
            found.setdefault(case["name"], {})[capability] = case["passes"]
    return found


def save(path: Path, device: torch.device, entries: list[Entry], quick: bool) -> None:
    """Writes `entries`, beside those of other cases that `path` holds from the same machine.

    Raises:
        ValueError: the file is of another machine, installation or kind of run.
    """
    about = {**machine(device), "quick": quick}
    kept: list[Entry] = []
    if path.exists():
        before = json.loads(path.read_text())
        differ = [k for k in about if before["machine"].get(k) != about[k]]
        if differ:
            raise ValueError(
                f"{path} was measured with another {', '.join(differ)}; move it away or name "
                "another file with --out"
            )
        new = {entry["name"] for entry in entries}
        kept = [entry for entry in before["cases"] if entry["name"] not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": about, "cases": kept + entries}, indent=1) + "\n"
    # Renamed into place: an interrupted run leaves a whole file.
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    beside.replace(path)


def _source() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", *SOURCES)),
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1).strip() if found else platform.machine()


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
