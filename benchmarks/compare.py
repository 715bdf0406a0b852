"""Two installed versions side by side, each time in a fresh process, in turns:

    python benchmarks/compare.py --before BEFORE/bin/python --after AFTER/bin/python

For every case and pass the median over the rounds of after's time by before's, with a 95% interval
by the bootstrap. What is slower by more than 3%, and not by chance, is marked; the exit status is
then 1.

With `--instructions` (valgrind and a C compiler are needed) instructions are counted in place of
seconds, once each, on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The cases are those of this folder, whatever is installed; nothing of the folder above is seen,
# where another vaefast lies.
_FOLDER = Path(__file__).resolve().parent
# Seconds of a sample, and samples of a case in one process.
_SAMPLE, _SAMPLES = 4e-3, 9


def measure(names: Sequence[str], quick: bool, counts: Path | None) -> dict[str, float]:
    """Seconds of a call by "case, pass", by what is installed; with a folder for `counts` these are
    written there instead."""
    spec = importlib.util.spec_from_file_location(
        "benchmarks", _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = package
    spec.loader.exec_module(package)
    import torch

    cases: Any = importlib.import_module("benchmarks.cases")
    harness: Any = importlib.import_module("benchmarks.harness")
    device, found = torch.device("cpu"), {}
    counter = None
    if counts:
        torch.set_num_threads(1)
        counter = importlib.import_module("benchmarks.instructions").Counter.of(counts)
    for case in cases.collect():
        if names and case.name not in names:
            continue
        case = case.small() if quick else case
        ours = [i for i in case.implementations(device) if i == "vaefast-native"]
        inputs = case.make(device)
        for what in case.passes if ours else ():
            call = case.call(ours[0], what, inputs, "inductor")
            if counter:
                with importlib.import_module("vaefast").backend(call.backend):
                    counter.count(f"{case.name}, {what}", call.run, 4)
                continue
            harness.warm_up({what: call})
            batch = harness._batch(call, _SAMPLE, lambda: None)
            samples = []
            start = time.perf_counter()
            while len(samples) < _SAMPLES and (len(samples) < 3 or time.perf_counter() - start < 2):
                samples.append(harness._time(call, batch, lambda: None)[0])
            found[f"{case.name}, {what}"] = statistics.median(samples)
    return found


def ratios(rounds: Sequence[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """By case and pass: the median ratio, its interval, and both medians in seconds."""
    found = {}
    for name in rounds[0][0]:
        pairs = [(before[name], after[name]) for before, after in rounds if name in after]
        each = [after / before for before, after in pairs]
        if not each:
            continue
        draw = random.Random(0)
        medians = sorted(statistics.median(draw.choices(each, k=len(each))) for _ in range(1000))
        found[name] = {
            "ratio": statistics.median(each),
            "low": medians[25],
            "high": medians[974],
            "before": statistics.median(b for b, _ in pairs),
            "after": statistics.median(a for _, a in pairs),
        }
    return found


def _child(python: str, args: argparse.Namespace) -> dict[str, float]:
    command = [python, __file__, "--measure", *(["--quick"] if args.quick else [])]
    command += ["--exactly", *args.exactly] if args.exactly else []
    with tempfile.TemporaryDirectory() as name:
        folder, environment = Path(name), dict(os.environ)
        if args.instructions:
            from instructions import command as under_callgrind

            command = under_callgrind([*command, "--counts", name], folder)
            environment |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{python} failed:\n{done.stderr[-2000:]}")
        if args.instructions:
            from instructions import counted

            return counted(folder)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", help="the Python that has the version before")
    parser.add_argument("--after", help="the Python that has the version after")
    parser.add_argument(
        "--exactly", nargs="+", default=[], help="cases of these names; default all"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="small sizes: only that it runs")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--instructions", action="store_true", help="count them instead")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--counts", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.exactly, args.quick, args.counts)))
        return
    if not args.before or not args.after:
        parser.error("--before and --after are required")
    rounds = []
    for number in range(1 if args.instructions else args.rounds):
        # Which one goes first changes too.
        order = (args.before, args.after) if number % 2 else (args.after, args.before)
        both = {python: _child(python, args) for python in order}
        rounds.append((both[args.before], both[args.after]))
        if args.out:
            args.out.write_text(json.dumps(ratios(rounds), indent=1) + "\n")
    slower = False
    unit, scale = ("thousand", 1e-3) if args.instructions else ("us", 1e6)
    for name, r in ratios(rounds).items():
        mark = "SLOWER" if r["ratio"] > 1.03 and r["low"] > 1 else ""
        slower |= bool(mark)
        print(
            f"{name:64s} {scale * r['before']:10.1f} {scale * r['after']:10.1f} {unit}  "
            f"{r['ratio']:.3f} [{r['low']:.3f}, {r['high']:.3f}] {mark}"
        )
    sys.exit(slower)


if __name__ == "__main__":
    main()
