"""Random calls of every operator, the native backend against float64.

    python tests/fuzz.py --minutes 60
    python tests/fuzz.py --cases 100000 --seed 500000 --only sample_kl

Case i has seed S + i and nothing else, so a run is taken up again by its seed. Each case is a
random operator with random shapes, strides, dtypes, settings, gradients wanted, upstream gradients
and ways of going backward, called three times with fresh data of the same shapes and strides: what
is prepared at the first call serves from the second on. A failure is made small and printed as a
script; the run goes on, and ends with code 1. A crash or a hang of a case is a failure too.

With AddressSanitizer and UBSan: build the core by itself, and put it into a copy of the package
(VAEFAST_ISAS=default takes a third of the time and tests the kernels of the least instruction set
alone),

    cmake -S csrc -B build/fuzz-asan -GNinja -DPython_EXECUTABLE="$(which python)" \\
        -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" -DVAEFAST_VERSION=0 -DVAEFAST_CUDA=0 \\
        -DVAEFAST_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O1 -g1"
    cmake --build build/fuzz-asan --target _C
    mkdir build/fuzz-asan/python && cp -r vaefast build/fuzz-asan/python
    rm -f build/fuzz-asan/python/vaefast/_C*.so
    cp build/fuzz-asan/_C*.so build/fuzz-asan/python/vaefast
    ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(gcc -print-file-name=libasan.so) \\
        $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so)" \\
        PYTHONPATH=$PWD/build/fuzz-asan/python python tests/fuzz.py --cases 10000

(libstdc++ beside it: ASan looks for `__cxa_throw` before torch has loaded its own.)
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import multiprocessing as mp
import os
import random
import sys
import time
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

import fuzz_user  # noqa: F401
import torch
from fuzz_cases import Case, Draw
from fuzz_check import Failure, Refused, check, quiet
from fuzz_operators import OPERATORS
from fuzz_shrink import script, shrunk

import vaefast as vf

_NAMES = [name for name, operator in OPERATORS.items() for _ in range(operator.share)]
# A case takes milliseconds, compilation seconds.
_HANG = 300.0
# Of one kind of failure so many are made small.
_EACH, _MOST = 2, 60


def random_case(seed: int, only: str | None = None, mode: str = "eager") -> Case:
    """The case of a seed."""
    rng = random.Random(seed)
    name = only or rng.choice(_NAMES)
    case = Case(seed, name)
    OPERATORS[name].make(case, Draw(rng))
    if mode == "transforms":
        import fuzz_transforms

        fuzz_transforms.choose(case, rng)
    return case


def failures_of(case: Case) -> list[Failure]:
    """`check`, by the case's own way of differentiating."""
    if case.backward.startswith("transform "):
        import fuzz_transforms

        return fuzz_transforms.check(case)
    return check(case)


def _worker(
    pipe: Connection, at: Any, seeds: range, deadline: float, only: str | None, mode: str
) -> None:
    torch.set_num_threads(1)
    faulthandler.enable()
    done = refused = 0
    with quiet():
        for seed in seeds:
            if time.monotonic() > deadline:
                break
            at.value = seed
            case = random_case(seed, only, mode)
            try:
                for failure in failures_of(case):
                    pipe.send(("failure", case, failure))
            except Refused as error:
                refused += 1
                if refused > 50 and refused > done // 20:
                    pipe.send(("broken", case, f"too many cases are refused, as: {error}"))
                    break
            except Exception:
                pipe.send(("broken", case, traceback.format_exc()))
            done += 1
            if done % 100 == 0:
                pipe.send(("done", 100, None))
    pipe.send(("done", done % 100, None))
    pipe.send(("end", None, None))


class _Run:
    """A worker and the seeds that are left to it."""

    def __init__(self, seeds: range, options: argparse.Namespace, deadline: float) -> None:
        self.seeds, self.options, self.deadline = seeds, options, deadline
        self.ended = False
        self.start()

    def start(self) -> None:
        context = mp.get_context("fork")
        self.at = context.Value("q", self.seeds.start - 1)
        self.pipe, other = context.Pipe(duplex=False)
        arguments = (other, self.at, self.seeds, self.deadline)
        self.process = context.Process(
            target=_worker, args=(*arguments, self.options.only, self.options.mode), daemon=True
        )
        self.process.start()
        other.close()
        self.seen, self.since = -1, time.monotonic()

    def hangs(self) -> bool:
        now = time.monotonic()
        if self.at.value != self.seen:
            self.seen, self.since = self.at.value, now
        return now - self.since > _HANG

    def crashed(self, how: str) -> tuple[Case, Failure]:
        """The case that it died of; a new worker takes the seeds after it."""
        seed = self.at.value
        case = random_case(seed, self.options.only, self.options.mode)
        self.seeds = range(seed + self.seeds.step, self.seeds.stop, self.seeds.step)
        self.start()
        return case, Failure("process", how, (0,), how)


def _dies(case: Case) -> bool:
    """True where a case kills the process that runs it."""
    child = os.fork()
    if not child:
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            with quiet():
                failures_of(case)
        except BaseException:
            pass
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def _alike(failure: Failure) -> Any:
    def fails(case: Case) -> bool:
        try:
            found = failures_of(case)
        except Exception:
            return False
        # What goes wrong at a later call only stays so; the data of a smaller case are other ones.
        later = 0 not in failure.calls
        return any(
            (f.what, f.how) == (failure.what, failure.how) and not (later and 0 in f.calls)
            for f in found
        )

    return fails


class Report:
    """What was found, each kind once."""

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[Any, ...]] = collections.Counter()
        self.shown: collections.Counter[tuple[Any, ...]] = collections.Counter()
        self.kinds: set[tuple[Any, ...]] = set()
        self.broken: collections.Counter[str] = collections.Counter()

    def add(self, case: Case, failure: Failure) -> None:
        coarse = (case.op, *failure.signature())
        self.counts[coarse] += 1
        if self.shown[coarse] >= _EACH or sum(self.shown.values()) >= _MOST:
            return
        self.shown[coarse] += 1
        died = failure.what == "process"
        if died and failure.how == "hang":
            small = case
        else:
            with quiet():
                small = shrunk(case, _dies if died else _alike(failure), 60 if died else 400)
        kind = _kind(small, failure)
        if kind in self.kinds:
            return
        self.kinds.add(kind)
        print(f"\n# FAILURE seed {case.seed}: {case.op}, {failure.what}: {failure.detail}")
        print(f"# {kind}\n# {small}")
        try:
            print(script(small, failure), flush=True)
        except Exception:
            print(f"# no script: {traceback.format_exc(limit=-1)}", flush=True)


def _kind(case: Case, failure: Failure) -> tuple[Any, ...]:
    """Failures of one kind, as far as the smallest case tells."""
    layouts = tuple(sorted({o.layout != "dense" for o in case.operands.values()}))
    dtypes = tuple(sorted({str(o.dtype) for o in case.operands.values() if o.floating()}))
    return (
        case.op,
        *failure.signature(),
        case.backward,
        0 in case.dims.values(),
        bool(case.hidden),
        case.grid,
        layouts,
        dtypes,
        tuple(sorted(case.settings)),
        "mask" in case.operands,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mode", choices=("eager", "transforms"), default="eager")
    parser.add_argument("--minutes", type=float, help="how long; default: until --cases, or 1")
    parser.add_argument("--cases", type=int, help="how many; default: until --minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--only", choices=tuple(OPERATORS), help="an operator")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    if vf.available_backends()[0] != "native":
        parser.error("there is no native backend to test; `vaefast info` says why")
    minutes = options.minutes or (None if options.cases else 1.0)
    begin = time.monotonic()
    deadline = begin + 60 * minutes if minutes else float("inf")
    stop = options.seed + (options.cases or 10**12)
    jobs = options.jobs
    runs = [_Run(range(options.seed + j, stop, jobs), options, deadline) for j in range(jobs)]
    report, done = Report(), 0
    while any(not r.ended for r in runs):
        pipes = {r.pipe: r for r in runs if not r.ended}
        for pipe in wait(list(pipes), timeout=5):
            run = pipes[pipe]
            try:
                kind, first, second = run.pipe.recv()
            except EOFError:
                run.process.join()
                report.add(*run.crashed(f"died, exit code {run.process.exitcode}"))
                continue
            if kind == "done":
                done += first
            elif kind == "failure":
                report.add(first, second)
            elif kind == "broken":
                report.broken[second] += 1
                if report.broken[second] == 1:
                    print(f"\n# BROKEN CASE seed {first.seed}: {first}\n{second}", flush=True)
            else:
                run.ended = True
                run.process.join()
        for run in runs:
            if not run.ended and run.hangs():
                run.process.kill()
                report.add(*run.crashed("hang"))
    spent = time.monotonic() - begin
    last = max(r.at.value for r in runs)
    rate = done / spent
    print(f"\n{done} cases in {spent:.0f} s, {rate:.0f} a second, seeds {options.seed} to {last}")
    for kind, count in report.counts.most_common():
        print(f"{count:6d}  {', '.join(map(str, kind))}")
    return 1 if report.counts or report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
