"""What the stages of a GPU run do, each in a process of its own; see gpu_run.py.

A line `@case {...}` on standard output is a result. A case that raises is one that failed, and the
others are run all the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vaefast as vf

from . import (
    bench_elbo_loss,
    bench_gaussian_kl,
    bench_mixture_log_prob,
    bench_mmd,
    bench_models,
    bench_nll,
    bench_row_nll,
    bench_sample_kl,
    bench_tc_terms,
    gpu,
    record,
)
from .case import BOTH, COMPILED, EAGER, FORWARD, FUSED, Case, Inputs, OpCase, Shape, leaf
from .harness import FLOOR, Summary, copy_floor, interleaved, warm_up
from .operators import operators

# Bytes that a streaming case moves forward and backward, less on a GPU with little memory.
BYTES = 1_500_000_000
BATCHES = (1024, 4096, 8192)


class Stage:
    """What the command line asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.dry: bool = args.dry_run
        self.device = torch.device("cpu" if self.dry else "cuda")
        self.compiler = "aot_eager" if self.dry else "inductor"
        part, _, count = args.shard.partition("/")
        self.part, self.count = int(part), int(count)

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def mine(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's share."""
        return items[self.part :: self.count]

    @contextmanager
    def case(self, name: str) -> Iterator[dict[str, Any]]:
        """A case that is told when it is done, and fails alone."""
        found: dict[str, Any] = {"name": name, "failed": None}
        begun = time.perf_counter()
        try:
            yield found
            self.wait()
            if name == self.args.fail:
                raise RuntimeError("it was asked to fail")
        except Exception as error:
            found["failed"] = f"{type(error).__name__}: {error}"[:1000]
        found["seconds"] = round(time.perf_counter() - begun, 3)
        tell("case", found)


def tell(what: str, value: Any) -> None:
    print(f"@{what} {json.dumps(value)}", flush=True)


def machine(stage: Stage) -> None:
    """Where this runs; a build that does not serve the GPU is a failure."""
    about = record.machine(stage.device)
    if not stage.dry:
        has = torch.cuda.get_device_properties(stage.device)
        about |= {
            "compute_capability": f"{has.major}.{has.minor}",
            "multiprocessors": has.multi_processor_count,
            "l2_bytes": has.L2_cache_size,
            "memory_bytes": has.total_memory,
        }
    tell("machine", {**about, "backends": vf.info()["backends"]})
    with stage.case("the native backend serves"):
        serving = vf.available_backends(stage.device.type)
        assert serving[0] == "native", vf.info()["backends"][stage.device.type]
        core = importlib.import_module("vaefast._C")
        # An editable install elsewhere must not stand in for what was built.
        assert Path(str(core.__file__)).parent == Path(vf.__file__).parent, core.__file__


def smoke(stage: Stage) -> None:
    """Each operator against float64, and that a second call of it does not wait."""
    backend = stage.args.backend
    for operator in stage.mine(operators()):
        with stage.case(f"{backend} {operator.name}"):
            operator.check(backend, stage.device)
            if not stage.dry:
                inputs = operator.inputs(stage.device, operator.dtype)
                with vf.backend(backend), gpu.no_waiting():
                    operator.call(inputs)


def call(stage: Stage) -> None:
    """Every native operator once, for a tool that looks at its kernels."""
    with stage.case(f"{stage.args.label}: every operator"), vf.backend("native"):
        for operator in operators():
            operator.call(operator.inputs(stage.device, operator.dtype))


# ---- measuring


def streams(stage: Stage) -> None:
    """Device time of 10 calls in a graph, beside copy_ of as many bytes."""
    for case in stage.mine(stream_cases(stage)):
        for what in (FORWARD, BOTH):
            # The compiler is measured where the gradient counts: each pass compiles anew.
            baselines = (EAGER,) if what == FORWARD or stage.dry else (EAGER, COMPILED)
            with stage.case(f"{case.name} {what}") as found:
                fill(stage, case, what, (*baselines, *ours(case, stage)), found)


def fill(
    stage: Stage, case: OpCase, what: str, names: Sequence[str], found: dict[str, Any]
) -> None:
    """Measures a case into `found`; raises where one of ours failed, the others' figures kept."""
    torch._dynamo.reset()
    if stage.dry:
        inputs = case.make(stage.device)
        calls = {n: case.call(n, what, inputs, stage.compiler) for n in names}
        calls[FLOOR] = copy_floor(case.moved(what, inputs), stage.device)
        failed = warm_up(calls)
        running = {n: c for n, c in calls.items() if n not in failed}
        times = interleaved(running, rounds=1, sample=0.0)
        cold = False
    else:
        torch.cuda.empty_cache()
        times, failed, cold = gpu.device_times(
            *(case, what, stage.device, 10, stage.compiler), only=names
        )
        inputs = case.make(stage.device)
    moved = case.moved(what, inputs)
    errors: dict[str, dict[str, Any]] = {n: {"error": text} for n, text in failed.items()}
    found |= {"moved": moved, "cold": cold, "shape": list(case.shape)}
    found["implementations"] = record.figures(times, case.elements(inputs), moved, errors)
    refuse(failed)


def refuse(failed: Mapping[str, str]) -> None:
    """Raises RuntimeError where one of ours is among what failed."""
    mine = [f"{name}: {text}" for name, text in failed.items() if name.startswith(FUSED)]
    if mine:
        raise RuntimeError("; ".join(mine))


def ours(case: Case, stage: Stage) -> tuple[str, ...]:
    return tuple(n for n in case.implementations(stage.device) if n.startswith(FUSED))


def stream_cases(stage: Stage) -> list[OpCase]:
    """Eight, of as many rows as move the bytes wanted."""
    images, genes, classes = (4, 64, 64), (4000,), (8192,)
    posterior = bench_sample_kl.cases()[0]
    categorical = bench_row_nll.case(
        "categorical 8192 classes",
        vf.Categorical(),
        (1, *classes),
        (5, 41),
        {"eager": bench_row_nll.categorical_written_out},
        bench_row_nll.classes,
    )

    def likelihood(name: str) -> OpCase:
        kinds = vf.likelihoods.registered()
        example = bench_nll.EXAMPLES.get(name, bench_nll.drawn)
        return bench_nll.case(name, kinds[name](), (1,), bench_nll.TEXTBOOK.get(name), example)

    chosen = [
        (posterior, images),
        (
            dataclasses.replace(posterior, inputs=in_bfloat16(posterior.inputs), variant="bf16"),
            images,
        ),
        (bench_gaussian_kl.cases()[0], images),
        (likelihood("bernoulli"), images),
        (likelihood("gaussian"), images),
        (likelihood("poisson"), genes),
        (likelihood("negative_binomial"), genes),
        (categorical, classes),
    ]
    return [sized(stage, case, inner) for case, inner in chosen]


def sized(stage: Stage, case: OpCase, inner: Shape) -> OpCase:
    """The case at [rows, *inner], its inputs some rows again and again."""
    few = 8
    made = case.inputs

    def repeated(shape: Shape, device: torch.device) -> Inputs:
        small = made((min(few, shape[0]), *shape[1:]), device)
        times = -(-shape[0] // few)
        grow = lambda t: t.repeat(times, *[1] * (t.dim() - 1))[: shape[0]]  # noqa: E731
        return Inputs(
            tuple(leaf(grow(t.detach())) for t in small.leaves),
            tuple(map(grow, small.constants)),
            tuple(None if t is None else grow(t) for t in small.upstream),
        )

    if stage.dry:
        return dataclasses.replace(case, shape=(3, *(min(n, 5) for n in inner)))
    wanted = min(BYTES, torch.cuda.mem_get_info()[1] // 24)
    each = case.moved(BOTH, made((few, *inner), stage.device)) / few
    return dataclasses.replace(case, inputs=repeated, shape=(max(1, int(wanted / each)), *inner))


def in_bfloat16(
    make: Callable[[Shape, torch.device], Inputs],
) -> Callable[[Shape, torch.device], Inputs]:
    def narrow(shape: Shape, device: torch.device) -> Inputs:
        given = make(shape, device)
        to: Callable[[Tensor], Tensor] = lambda t: t.detach().to(torch.bfloat16)  # noqa: E731
        return Inputs(
            tuple(leaf(to(t)) for t in given.leaves),
            tuple(map(to, given.constants)),
            tuple(None if t is None else to(t) for t in given.upstream),
        )

    return narrow


def launches(stage: Stage) -> None:
    """Microseconds by the wall clock, call by call, and of a replay of 10 calls."""
    for case in launch_cases():
        with stage.case(case.name) as found:
            torch._dynamo.reset()
            timed = case.small() if stage.dry else case
            what = timed.passes[-1]
            inputs = timed.make(stage.device)
            calls = {
                n: timed.call(n, what, inputs, stage.compiler)
                for n in (EAGER, *(() if stage.dry else (COMPILED,)), *ours(timed, stage))
            }
            failed = warm_up(calls, stage.wait)
            running = {n: c for n, c in calls.items() if n not in failed}
            rounds, sample = (1, 0.0) if stage.dry else (15, 2e-3)
            times = interleaved(running, rounds=rounds, sample=sample, budget=2, wait=stage.wait)
            figures: dict[str, Any] = {n: {"error": text} for n, text in failed.items()}
            for name, summary in times.items():
                figures[name] = {"wall_us": round(summary.median * 1e6, 2)}
            found["implementations"] = figures
            if not stage.dry and timed.capturable:
                for name, one in running.items():
                    try:
                        graph = gpu.Captured([one] * gpu.MIN_CALLS)
                        figures[name]["graph_us"] = round(graph.wall_seconds() * 1e6, 2)
                    except Exception as error:
                        failed[name] = f"not captured: {error}"[:200]
                        figures[name]["error"] = failed[name]
            refuse(failed)


def launch_cases() -> list[Case]:
    return [
        bench_sample_kl.cases()[0],
        bench_gaussian_kl.cases()[0],
        next(c for c in bench_nll.cases() if c.name == "nll bernoulli 128x784"),
        *bench_elbo_loss.cases(),
        bench_models.mlp(),
    ]


def pairs(stage: Stage) -> None:
    """The device's time of each call, between events."""
    for batch in BATCHES[:1] if stage.dry else BATCHES:
        for case in pair_cases(batch):
            with stage.case(f"{case.name} {BOTH}") as found:
                torch._dynamo.reset()
                timed = case.small() if stage.dry else case
                timed = dataclasses.replace(timed, alone=case.alone)
                inputs = timed.make(stage.device)
                names = [
                    n
                    for n in timed.implementations(stage.device)
                    if n != "distributions" and not (n == COMPILED and stage.dry)
                ]
                calls = {n: timed.call(n, BOTH, inputs, stage.compiler) for n in names}
                failed = warm_up(calls, stage.wait)
                running = {n: c for n, c in calls.items() if n not in failed}
                times: dict[str, Summary]
                if stage.dry:
                    times = interleaved(running, rounds=1, sample=0.0)
                else:
                    times = gpu.event_times(running, budget=2.0)
                errors: dict[str, dict[str, Any]] = {n: {"error": t} for n, t in failed.items()}
                found["shape"] = list(timed.shape)
                found["implementations"] = record.figures(
                    times, timed.elements(inputs), None, errors
                )
                refuse(failed)


def pair_cases(batch: int) -> list[OpCase]:
    """Alone where one of eager's tensors takes more than a gigabyte."""
    terms, distance = bench_tc_terms.cases()[-1], bench_mmd.cases()[-1]
    mixture = bench_mixture_log_prob.cases()[0]
    return [
        dataclasses.replace(terms, shape=(batch, 64), alone=batch > bench_tc_terms.EAGERS),
        dataclasses.replace(distance, shape=(batch, 32), alone=False),
        dataclasses.replace(mixture, shape=(batch, 500, 40), alone=batch > BATCHES[0]),
    ]


def warm(stage: Stage) -> None:
    """Compiles what a stage will want, for the caches on disk."""
    wanted: dict[str, Callable[[], Sequence[Case]]] = {
        "streams": lambda: stream_cases(stage),
        "launches": launch_cases,
        "pairs": lambda: [case for batch in BATCHES for case in pair_cases(batch)],
    }
    for case in stage.mine(wanted[stage.args.of]()):
        torch._dynamo.reset()
        inputs = case.make(stage.device)
        for what in (FORWARD, BOTH) if stage.args.of == "streams" else case.passes[-1:]:
            every = case.implementations(stage.device)
            names = [n for n in every if n.startswith(FUSED) or (n == COMPILED and what != FORWARD)]
            calls = {n: case.call(n, what, inputs, stage.compiler) for n in names}
            print(case.name, what, warm_up(calls, stage.wait) or "is compiled", flush=True)


STAGES: dict[str, Callable[[Stage], None]] = {
    "machine": machine,
    "smoke": smoke,
    "call": call,
    "streams": streams,
    "launches": launches,
    "pairs": pairs,
    "warm": warm,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("of", nargs="?")
    parser.add_argument("--backend", default="native")
    parser.add_argument("--label", default="call")
    parser.add_argument("--shard", default="0/1", metavar="I/N")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--fail", default="")
    args = parser.parse_args()
    torch.manual_seed(0)
    STAGES[args.stage](Stage(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
