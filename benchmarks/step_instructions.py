"""The instructions of whole training steps on one thread: what a step takes above its limit, the
same step with the replaced operations left out, beside those operations by themselves. Callgrind
counts them, and no other process on the machine moves a count.

    python -m benchmarks.step_instructions [--only NAME ...]

prints them and writes `results/step-instructions.json`; cases that are not counted keep what they
have there. valgrind hides AVX-512: the counts are those of AVX2 kernels. A count is no time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import vaefast as vf

from . import instructions
from .bench_models import ModelCase, cases
from .case import EAGER, FUSED, LIMIT, OPERATORS

RESULT = Path(__file__).parent / "results" / "step-instructions.json"
NATIVE = FUSED + "native"


def measure(folder: Path, only: list[str], calls: int) -> None:
    """Under callgrind."""
    torch.set_num_threads(1)
    counter = instructions.Counter.of(folder)
    for case in chosen(only):
        torch.manual_seed(0)
        inputs = case.make(torch.device("cpu"))
        for name in (EAGER, NATIVE, LIMIT, OPERATORS):
            call = case.call(name, "step", inputs)
            with vf.backend(call.backend):
                counter.count(f"{case.label}, {name}", call.run, calls)


def chosen(only: list[str]) -> list[ModelCase]:
    return [c for c in cases() if not only or any(text in c.label for text in only)]


def count(only: list[str], calls: int) -> dict[str, dict[str, float]]:
    """Instructions of a step by the case's label and the implementation."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "benchmarks.step_instructions", "--folder", name]
        command += ["--calls", str(calls), *(["--only", *only] if only else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        subprocess.run(instructions.command(command, Path(name)), check=True, env=environment)
        counts = instructions.counted(Path(name))
    return {
        case.label: {i: counts[f"{case.label}, {i}"] for i in (EAGER, NATIVE, LIMIT, OPERATORS)}
        for case in chosen(only)
    }


def above(counts: dict[str, float]) -> float:
    """What a step takes above its limit, as a multiple of its operators alone."""
    return (counts[NATIVE] - counts[LIMIT]) / counts[OPERATORS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose label contains one")
    parser.add_argument("--calls", type=int, default=2, help="that are counted")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        measure(args.folder, args.only, args.calls)
        return
    for case in chosen(args.only):
        found = json.loads(RESULT.read_text()) if RESULT.exists() else {"steps": {}}
        counts = count([case.label], args.calls)[case.label]
        found["torch"] = torch.__version__
        found["steps"][case.label] = counts
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
        each = ", ".join(f"{name} {value / 1e6:.1f}" for name, value in counts.items())
        print(
            f"{case.label}: {each} million instructions; above the limit {above(counts):.2f} times "
            "the operators alone",
            flush=True,
        )


if __name__ == "__main__":
    main()
