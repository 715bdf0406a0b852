"""A training step in fresh processes, eager and vaefast in turns:

    python -m benchmarks.step_processes [--case "MLP 784-400-20 batch 128"] [--rounds 20]

prints the median over the rounds of eager's time by vaefast's, with a 95% interval by the
bootstrap, and writes it with every process's median to `results/step-processes.json`. One process
alone has its own luck with memory and with what the machine does besides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import vaefast as vf

from . import record
from .bench_models import ModelCase, cases, mlp
from .case import EAGER, FUSED
from .compare import ratios

RESULT = Path(__file__).parent / "results" / "step-processes.json"
NATIVE = FUSED + "native"


def measure(case: ModelCase, implementation: str, calls: int) -> float:
    """Seconds of a step, the median of `calls`, in this process."""
    torch.manual_seed(0)
    call = case.call(implementation, "step", case.make(torch.device("cpu")))
    seconds = []
    with vf.backend(call.backend):
        for _ in range(calls + 10):
            start = time.perf_counter()
            call.run()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[10:])


def run(label: str, rounds: int, threads: int, calls: int) -> dict[str, Any]:
    """Every process's seconds, and the ratio."""
    found = []
    for number in range(rounds):
        # Which one goes first changes too.
        order = (EAGER, NATIVE) if number % 2 else (NATIVE, EAGER)
        each = {}
        for name in order:
            command = [sys.executable, "-m", "benchmarks.step_processes", "--case", label]
            command += ["--measure", name, "--threads", str(threads), "--calls", str(calls)]
            done = subprocess.run(
                command, cwd=record.ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
            each[name] = float(done.stdout)
        found.append(each)
    # compare's ratio is the second's time by the first's.
    pairs = [({label: each[NATIVE]}, {label: each[EAGER]}) for each in found]
    judged = ratios(pairs)[label]
    return {
        "case": label,
        "seconds": found,
        "eager by vaefast": {n: judged[n] for n in ("ratio", "low", "high")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    labels = {case.label: case for case in cases()}
    parser.add_argument("--case", default=mlp().label, choices=[*labels])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=200, help="steps in each process")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        torch.set_num_threads(args.threads)
        print(measure(labels[args.case], args.measure, args.calls))
        return
    found = run(args.case, args.rounds, args.threads, args.calls)
    about = record.machine(torch.device("cpu"))
    about["threads"] = args.threads
    RESULT.write_text(json.dumps({"machine": about, **found}, indent=1) + "\n")
    ratio, low, high = found["eager by vaefast"].values()
    print(f"{args.case}: eager's time by vaefast's {ratio:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
