"""Interleaved timing in one process: medians and quartiles that ratios may be taken of."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

import vaefast as vf

from .case import Call

FLOOR = "copy_"
# A sample is at least this long, in seconds. What the implementation before it left in the caches
# then counts in its first call alone, whose time stands beside it.
SAMPLE = 1e-2
WARM_UPS = 3
MIN_ROUNDS = 7


class Summary(NamedTuple):
    """Seconds per call: median and quartiles over `rounds` samples of `batch` calls each.

    `first`: the median of the samples' first calls, which come right after another
    implementation's; None where it was not measured. `samples`: one of each round, in their order,
    which is that of the other implementations' too.
    """

    median: float
    q1: float
    q3: float
    rounds: int
    batch: int
    first: float | None = None
    samples: tuple[float, ...] = ()


class Above(NamedTuple):
    """How much longer one implementation takes than another, as a multiple of a third's time: the
    median over the rounds, and a 95% interval of it by the bootstrap."""

    ratio: float
    low: float
    high: float


def above(mine: Summary, limit: Summary, unit: Summary) -> Above:
    """Of times of the same rounds: what is slow for a while is so for both."""
    rounds = [*zip(mine.samples, limit.samples, unit.samples, strict=True)]

    def ratio(rounds: Sequence[tuple[float, float, float]]) -> float:
        more = statistics.median(a - b for a, b, _ in rounds)
        return more / statistics.median(c for _, _, c in rounds)

    draw = random.Random(0)
    each = sorted(ratio(draw.choices(rounds, k=len(rounds))) for _ in range(1000))
    return Above(ratio(rounds), each[25], each[974])


def summarize(
    seconds: Sequence[float], batch: int = 1, firsts: Sequence[float] | None = None
) -> Summary:
    """Of samples in seconds per call."""
    first = statistics.median(firsts) if firsts else None
    if len(seconds) == 1:
        return Summary(seconds[0], seconds[0], seconds[0], 1, batch, first, tuple(seconds))
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return Summary(median, q1, q3, len(seconds), batch, first, tuple(seconds))


def interleaved(
    calls: Mapping[str, Call],
    *,
    rounds: int = 40,
    budget: float = 30.0,
    sample: float = SAMPLE,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, Summary]:
    """Times `calls` in turns, in a new random order each round.

    Args:
        calls: by name; each must have run before (see `warm_up`).
        rounds: samples of each, fewer where `budget` seconds are spent, but at least 7.
        sample: the least length of a sample in seconds; short calls are timed in batches.
        wait: returns when the device is done.
    """
    names = list(calls)
    batches = {name: _batch(calls[name], sample, wait) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    firsts: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(rounds):
            if done >= min(rounds, MIN_ROUNDS) and time.perf_counter() - start > budget:
                break
            order.shuffle(names)
            for name in names:
                mean, first = _time(calls[name], batches[name], wait)
                seconds[name].append(mean)
                firsts[name].append(first)
    finally:
        if enabled:
            gc.enable()
    return {name: summarize(seconds[name], batches[name], firsts[name]) for name in calls}


def warm_up(calls: Mapping[str, Call], wait: Callable[[], None] = lambda: None) -> dict[str, str]:
    """Runs every call a few times, which compiles what is to be compiled.

    Returns:
        The message of each that cannot run here, by name. Where one of ours is among them, the case
        has failed, and the others are measured all the same.
    """
    failed = {}
    for name, call in calls.items():
        try:
            for _ in range(WARM_UPS):
                _time(call, 1, wait)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return failed


def copy_floor(moved: int, device: torch.device) -> Call:
    """`dst.copy_(src)` into warm memory, which reads and writes `moved` bytes in all."""
    # float32: half of the bytes are read, half written.
    source = torch.ones(max(1, moved // 8), device=device)
    target = torch.empty_like(source)
    return Call(lambda: target.copy_(source), "reference")


def _batch(call: Call, sample: float, wait: Callable[[], None]) -> int:
    fastest = min(_time(call, 1, wait)[0] for _ in range(3))
    return max(1, math.ceil(sample / max(fastest, 1e-9)))


def _time(call: Call, batch: int, wait: Callable[[], None]) -> tuple[float, float]:
    """Seconds per call, and those of the first until it returned."""
    run = call.run
    with vf.backend(call.backend):
        wait()
        start = time.perf_counter()
        run()
        first = time.perf_counter() - start
        for _ in range(batch - 1):
            run()
        wait()
        return (time.perf_counter() - start) / batch, first
