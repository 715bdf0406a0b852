"""Device time with a cold L2: calls over rotating buffers inside a captured CUDA graph."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import vaefast as vf

from .case import Call, Case
from .harness import FLOOR, Summary, copy_floor, summarize

# Small cases would need thousands of buffers; they wait for the launch, not for memory.
MAX_BUFFERS = 64
# A graph's start is not part of a call, and is spread over as many.
MIN_CALLS = 10


class Captured:
    """A graph of calls. `keep`: every call writes to memory of its own."""

    def __init__(self, calls: Sequence[Call], keep: bool = True) -> None:
        self.calls = len(calls)
        self.graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with vf.backend(calls[0].backend):
            with torch.cuda.stream(side):
                for call in dict.fromkeys(calls):
                    for _ in range(3):
                        call.run()
                # A capture that breaks off at a wait can leave the default generator unusable.
                with no_waiting():
                    calls[0].run()
            torch.cuda.current_stream().wait_stream(side)
            self.results: list[Any] = []
            with torch.cuda.graph(self.graph):
                for call in calls:
                    result = call.run()
                    if keep:
                        self.results.append(result)
                    del result

    def seconds(self) -> float:
        """Device time per call of one replay."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / self.calls

    def wall_seconds(self, replays: int = 20) -> float:
        """Wall time per call of some replays, until the device is done."""
        seconds = []
        for _ in range(replays):
            torch.cuda.synchronize()
            start = time.perf_counter()
            self.graph.replay()
            torch.cuda.synchronize()
            seconds.append((time.perf_counter() - start) / self.calls)
        return statistics.median(seconds)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises RuntimeError where something waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def event_times(calls: Mapping[str, Call], budget: float) -> dict[str, Summary]:
    """The device's time of single calls, in turns, for about `budget` seconds; each has run."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    order, begun = random.Random(0), time.perf_counter()
    while len(seconds[names[0]]) < 3 or (
        time.perf_counter() - begun < budget and len(seconds[names[0]]) < 40
    ):
        order.shuffle(names)
        for name in names:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with vf.backend(calls[name].backend):
                start.record()
                calls[name].run()
                end.record()
            end.synchronize()
            seconds[name].append(start.elapsed_time(end) * 1e-3)
    return {name: summarize(values) for name, values in seconds.items()}


def device_times(
    case: Case,
    what: str,
    device: torch.device,
    rounds: int,
    compiler: str,
    only: Sequence[str] | None = None,
) -> tuple[dict[str, Summary], dict[str, str], bool]:
    """Times by implementation, why some have none, and whether the buffers exceed the L2 twice.

    The inputs and outputs of a graph's calls lie in different memory, where one call alone does not
    exceed the L2 by far. The graphs are replayed in turns, so that each finds the L2 as another
    left it. One of ours that fails is told as any other is.
    """
    first = case.make(device)
    names = case.implementations(device) if only is None else only
    moved = case.moved(what, first) or 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    count = min(MAX_BUFFERS, max(2, math.ceil(2 * cache / moved)))
    inputs = [first, *(case.make(device) for _ in range(count - 1))]
    makers: dict[str, Callable[[Any], Call]] = {
        name: lambda i, name=name: case.call(name, what, i, compiler) for name in names
    }
    makers[FLOOR] = lambda i: copy_floor(moved, device)
    graphs: dict[str, Captured] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try:
            one = [make(i) for i in inputs]
            graphs[name] = Captured(
                [one[i % count] for i in range(max(count, MIN_CALLS))], keep=moved < 2 * cache
            )
        except Exception as error:
            failed[name] = f"not captured: {error}".splitlines()[0][:200]
            torch.cuda.synchronize()
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    order, turns = random.Random(0), list(graphs)
    for done in range(rounds + 1):
        order.shuffle(turns)
        for name in turns:
            value = graphs[name].seconds()
            if done:
                seconds[name].append(value)
    times = {name: summarize(values) for name, values in seconds.items()}
    return times, failed, count * moved >= 2 * cache


def launches(call: Call) -> int:
    """Kernels, copies and fills that one call puts on the device."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with vf.backend(call.backend):
        call.run()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=activities) as profile:
            call.run()
            torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == cuda for event in profile.events())
