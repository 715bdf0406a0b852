"""One run on a GPU, in stages: build, check, measure, test.

Plain Python, without torch: each stage is processes of its own with a time limit, and what they
report is in results.json at once, whatever becomes of the rest. `benchmarks/gpu.sh` calls it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import ROOT

FORMAT = 1
# Seconds that a stage may take; the last has what is left.
LIMITS = {
    "build": 180,
    "smoke": 90,
    "sanitizer": 45,
    "streams": 80,
    "launches": 45,
    "pairs": 60,
    "tests": 300,
}
# A stage that would have less than this is not begun.
LEAST = 5
SHOWN = 200
PROCESSES = max(1, min(16, os.cpu_count() or 1))

Case = dict[str, Any]


class Results:
    """results.json, rewritten beside and renamed after every case."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.json"
        self.log = (folder / "run.log").open("w", encoding="utf-8")
        now = datetime.datetime.now(datetime.timezone.utc)
        self.data: dict[str, Any] = {
            "format": FORMAT,
            "date": now.strftime("%Y-%m-%d %H:%M UTC"),
            "settings": settings,
            "machine": {},
            "stages": [],
        }
        self.saved = 0.0
        self.save()

    def begin(self, name: str) -> Case:
        stage: Case = {"name": name, "state": "running", "cases": []}
        self.data["stages"].append(stage)
        self.save()
        return stage

    def save(self, at_most_every: float = 0.0) -> None:
        if time.monotonic() - self.saved < at_most_every:
            return
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.path)
        self.saved = time.monotonic()

    def write(self, line: str) -> None:
        self.log.write(line + "\n")
        self.log.flush()


class Ended(NamedTuple):
    """How a process ended: its status, None where its time was over."""

    status: int | None
    last: str


def processes(
    commands: Sequence[Sequence[str]],
    limit: float,
    told: Callable[[str], None],
    environment: dict[str, str],
    folder: Path,
) -> list[Ended]:
    """Runs the commands beside each other, for `limit` seconds at most; `told` gets every line."""
    lines: queue.Queue[tuple[int, str | None]] = queue.Queue()
    running: dict[int, subprocess.Popen[str]] = {}
    ended: dict[int, Ended] = {}
    last = [""] * len(commands)

    def follow(index: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put((index, line.rstrip("\n")))
        lines.put((index, None))

    for index, command in enumerate(commands):
        try:
            process = subprocess.Popen(
                list(command),
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            ended[index] = Ended(127, str(error))
            continue
        running[index] = process
        threading.Thread(target=follow, args=(index, process), daemon=True).start()
    deadline = time.monotonic() + limit
    try:
        while running:
            left = deadline - time.monotonic()
            try:
                index, line = lines.get(timeout=max(0.01, left))
            except queue.Empty:
                if left <= 0:
                    break
                continue
            if line is None:
                ended[index] = Ended(running.pop(index).wait(), last[index])
            else:
                last[index] = line.strip() or last[index]
                told(line)
            if left <= 0:
                break
    finally:
        for index, process in running.items():
            # The session that it leads: what it started ends with it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended[index] = Ended(None, last[index])
    return [ended[index] for index in range(len(commands))]


class Run:
    """The stages of one run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.dry, self.fail, self.module = args.dry_run, args.fail, args.module
        self.end = time.monotonic() + 60 * args.minutes
        settings = {k: getattr(args, k) for k in ("stages", "minutes", "dry_run", "fail")}
        self.results = Results(args.out, settings)
        kind = "cpu" if self.dry else "cuda"
        tag = f"{kind}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        self.folder = ROOT / "build" / f"gpu-{tag}"
        # Holds the package with the module that was built: nothing is installed.
        self.site = self.folder / "site"
        self.stage: Case = {}

    @property
    def environment(self) -> dict[str, str]:
        path = [str(self.site), str(ROOT), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "VAEFAST_BACKEND": "auto",
        }

    def run(self, names: Sequence[str]) -> int:
        """Each stage in turn, whatever became of the one before; the exit status."""
        if "build" not in names and not list(self.site.glob("vaefast/_C.*")):
            names = ["build", *names]
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            for name in names:
                self.one(name)
        finally:
            self.results.save()
        self.show()
        return int(any(s["state"] in ("failed", "timed out") for s in self.results.data["stages"]))

    def one(self, name: str) -> None:
        self.stage = self.results.begin(name)
        left = self.end - time.monotonic()
        begun = time.monotonic()
        if left < LEAST:
            self.stage |= {"state": "skipped", "why": "no time was left"}
        else:
            limit = min(LIMITS[name] * (10 if self.dry else 1), left)
            self.stage["limit"] = round(limit)
            try:
                state, why = getattr(self, name)(limit)
            except Exception as error:
                state, why = "failed", f"{type(error).__name__}: {error}"
            failed = [c["name"] for c in self.stage["cases"] if c.get("failed")]
            if failed and state == "passed":
                state, why = "failed", f"{len(failed)} failed: {', '.join(failed[:5])}"
            self.stage |= {"state": state, "why": why}
        self.stage["seconds"] = round(time.monotonic() - begun, 1)
        self.results.save()
        print(f"{name}: {self.stage['state']} in {self.stage['seconds']} s  {self.stage['why']}")

    def told(self, line: str) -> None:
        """What a process reports is a case; all else goes to the log."""
        mark, _, text = line.partition(" ")
        if mark == "@machine":
            self.results.data["machine"] = json.loads(text)
        elif mark == "@test":
            self.count(json.loads(text))
            return
        elif mark == "@case":
            case = json.loads(text)
            self.stage["cases"].append(case)
            print(f"  {'FAILED ' if case.get('failed') else ''}{line_of(case)}", flush=True)
        else:
            self.results.write(line)
            return
        self.results.save()

    def count(self, test: Case) -> None:
        counts = self.stage.setdefault("counts", {})
        counts[test["outcome"]] = counts.get(test["outcome"], 0) + 1
        if test["outcome"] == "failed" and len(self.stage["cases"]) < SHOWN:
            self.stage["cases"].append({"name": test["name"], "failed": test["message"]})
        self.results.save(at_most_every=1.0)

    def children(
        self, commands: Sequence[Sequence[str]], limit: float, **environment: str
    ) -> tuple[str, str]:
        """Runs them; the state they leave the stage in, and why."""
        before = len(self.stage["cases"])
        ended = processes(
            commands, limit, self.told, {**self.environment, **environment}, self.folder
        )
        if any(e.status is None for e in ended):
            return "timed out", f"after {limit:.0f} s; last: {ended[-1].last[:150]}"
        bad = [e for e in ended if e.status]
        if bad:
            return "failed", f"exit status {bad[0].status}: {bad[0].last[:200]}"
        if len(self.stage["cases"]) == before and not self.stage.get("counts"):
            return "failed", "nothing was run"
        return "passed", ""

    def python(self, *arguments: str) -> list[str]:
        """A process of gpu_stages.py."""
        shared = ["--dry-run"] * self.dry + (["--fail", self.fail] if self.fail else [])
        return [sys.executable, "-m", "benchmarks.gpu_stages", *arguments, *shared]

    # ---- the stages: each returns its state and why

    def build(self, limit: float) -> tuple[str, str]:
        """_C by CMake alone, and a copy of the package beside it."""
        shutil.rmtree(self.site, ignore_errors=True)
        package = self.site / "vaefast"
        skip = shutil.ignore_patterns("_C.*", "_build.json", "__pycache__")
        shutil.copytree(ROOT / "vaefast", package, ignore=skip)
        end = time.monotonic() + limit
        native = None if self.module else self.compiled(limit)
        record = {"native": native is None, "reason": native, "log": []}
        (package / "_build.json").write_text(json.dumps(record) + "\n")
        if native is None:
            name = "_C" + sysconfig.get_config_var("EXT_SUFFIX")
            made = self.module or next((self.folder / "native").rglob(name))
            shutil.copy2(made, package / name)
        left = max(LEAST, end - time.monotonic())
        state, why = self.children([self.python("machine")], left)
        return ("failed", native) if native is not None else (state, why)

    def compiled(self, limit: float) -> str | None:
        """Compiles _C; why it did not, or None."""
        scripts = sysconfig.get_path("scripts")
        tools = {n: shutil.which(n) or shutil.which(n, path=scripts) for n in ("cmake", "ninja")}
        if tools["cmake"] is None:
            return "there is no cmake"
        spec = importlib.util.find_spec("pybind11")
        if spec is None or spec.origin is None:
            return f"there is no pybind11 for {sys.executable}"
        text = (ROOT / "vaefast" / "__init__.py").read_text()
        version = re.search(r'__version__ = "(.+)"', text)
        configure = [
            *(tools["cmake"], "-S", str(ROOT / "csrc"), "-B", str(self.folder / "native")),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={Path(spec.origin).parent / 'share' / 'cmake' / 'pybind11'}",
            f"-DVAEFAST_VERSION={version[1] if version else ''}",
            f"-DVAEFAST_CUDA={0 if self.dry else 1}",
            "-DVAEFAST_ISAS=default",
        ]
        if tools["ninja"]:
            configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}"]
        build = [tools["cmake"], "--build", str(self.folder / "native"), "--target", "_C"]
        end = time.monotonic() + limit
        for command in (configure, [*build, "--parallel", str(os.cpu_count() or 2)]):
            begun = time.monotonic()
            (ended,) = processes([command], end - begun, self.results.write, dict(os.environ), ROOT)
            took = round(time.monotonic() - begun, 1)
            name = "compile" if "--build" in command else "configure"
            failed = None
            if ended.status != 0:
                cause = "took too long" if ended.status is None else "failed"
                failed = f"{name} {cause}: {ended.last[:200]}"
            self.stage["cases"].append({"name": name, "seconds": took, "failed": failed})
            self.results.save()
            if failed:
                return failed
        return None

    def smoke(self, limit: float) -> tuple[str, str]:
        """Every operator against float64: CUDA, then Triton, whose compiler wants processes."""
        end = time.monotonic() + limit
        first = "native" if not self.dry else "reference"
        second = "triton" if not self.dry else "native"
        native = self.children([self.python("smoke", "--backend", first)], 0.5 * limit)
        count = 1 if self.dry else PROCESSES
        shards = [
            self.python("smoke", "--backend", second, "--shard", f"{i}/{count}")
            for i in range(count)
        ]
        triton = self.children(shards, max(LEAST, end - time.monotonic()))
        return native if native[0] != "passed" else triton

    def sanitizer(self, limit: float) -> tuple[str, str]:
        """Every native operator under memcheck and racecheck."""
        tool = shutil.which("compute-sanitizer") or shutil.which(
            "compute-sanitizer", path="/usr/local/cuda/bin"
        )
        if tool is None or self.dry:
            return "skipped", "there is no compute-sanitizer" if not self.dry else "a dry run"
        about = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
        # What is not this library's is not looked at, and is quick.
        ours = ["--kernel-regex", "kns=vaefast"] if "--kernel-regex" in about else []
        target = self.python("call")
        commands = [
            [tool, "--tool", name, "--error-exitcode", "9", *ours, *target, "--label", name]
            for name in ("memcheck", "racecheck")
        ]
        # Else a block of torch's allocator hides what is written past a tensor.
        return self.children(commands, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")

    def streams(self, limit: float) -> tuple[str, str]:
        """One to two gigabytes through each of eight operators, beside copy_."""
        return self.measured("streams", limit)

    def measured(self, name: str, limit: float) -> tuple[str, str]:
        """What is compiled at run time is compiled side by side first, and found in a cache."""
        end = time.monotonic() + limit
        if not self.dry:
            count = min(8, PROCESSES)
            shards = [self.python("warm", name, "--shard", f"{i}/{count}") for i in range(count)]
            processes(shards, 0.5 * limit, self.results.write, self.environment, self.folder)
        return self.children([self.python(name)], max(LEAST, end - time.monotonic()))

    def launches(self, limit: float) -> tuple[str, str]:
        """Small sizes by the wall clock, call by call and as CUDA graphs."""
        return self.measured("launches", limit)

    def pairs(self, limit: float) -> tuple[str, str]:
        """The operators over all pairs of a batch."""
        return self.measured("pairs", limit)

    def tests(self, limit: float) -> tuple[str, str]:
        """The GPU's tests, as many as there is time for: what fails, fails the stage."""
        ours = ["-p", "benchmarks.gpu_tests", "--rootdir", str(ROOT)]
        ours += ["-c", str(ROOT / "pyproject.toml"), "-q", "-p", "no:cacheprovider"]
        ours += ["--continue-on-collection-errors"]
        files = sorted(
            path
            for pattern in ("test_*.py", "triton/test_gpu.py")
            for path in (ROOT / "tests").glob(pattern)
        )
        if self.dry:
            groups = [[ROOT / "tests" / "test_gpu_selection.py"]]
        else:
            ours += ["-m", "gpu"]
            groups = [files]
            if importlib.util.find_spec("xdist"):
                ours += ["-n", str(PROCESSES)]
            else:
                groups = [files[i::PROCESSES] for i in range(PROCESSES)]
        code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
        commands = [[sys.executable, "-c", code, *ours, *map(str, group)] for group in groups]
        state, why = self.children(commands, limit)
        counts = self.stage.get("counts", {})
        text = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
        if state == "timed out" and counts and not counts.get("failed"):
            # It is given what time there is.
            return "passed", f"{text} in the time there was"
        return state, f"{text or 'none ran'}. {why}".strip()

    def show(self) -> None:
        """The table last: what reads the end of the output sees it."""
        print(f"\n{self.results.data['machine'].get('device', 'no device')}")
        for stage in self.results.data["stages"]:
            print(f"{stage['state']:10} {stage['name']:10} {stage['seconds']:6} s  {stage['why']}")
            for case in stage["cases"]:
                if case.get("failed"):
                    print(f"    {case['name']}: {str(case['failed'])[:160]}")
        print(f"written to {self.results.path}", flush=True)


def line_of(case: Case) -> str:
    """A case for the terminal."""
    parts = [case["name"]]
    for name, figures in case.get("implementations", {}).items():
        if "median_us" in figures:
            speed = f" {figures['gb_per_s']:.0f} GB/s" if figures.get("gb_per_s") else ""
            parts.append(f"{name} {figures['median_us']:.4g} us{speed}")
        for what in ("wall_us", "graph_us"):
            if what in figures:
                parts.append(f"{name} {what} {figures[what]:.4g}")
        if "error" in figures:
            parts.append(f"{name}: {figures['error'][:60]}")
    if case.get("failed"):
        parts.append(str(case["failed"])[:200])
    return "  ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--stages", default=",".join(LIMITS), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=6.0, help="of the whole run")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at tiny sizes")
    parser.add_argument("--module", type=Path, help="a compiled _C, in the place of building one")
    parser.add_argument("--fail", default="", metavar="CASE", help="lets this case raise")
    args = parser.parse_args()
    names = args.stages.split(",")
    unknown = [n for n in names if n not in LIMITS]
    if unknown:
        parser.error(f"--stages must be of {', '.join(LIMITS)}, got {', '.join(unknown)}")
    args.out = args.out.absolute()
    return Run(args).run(names)


if __name__ == "__main__":
    sys.exit(main())
