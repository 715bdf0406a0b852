"""Peak memory of a call above its inputs.

On CPU in a process of its own, in which malloc maps every block over 64 KiB and returns it when
it is freed, as the compiled core does with its buffers. Then the growth of the resident set's
high-water mark, in pages, is what the call needed, the core's own scratch included; it is used
where the inputs exceed 4 MiB. Below that, pages are too coarse, and torch's allocations are added
up, to the byte, as they are of whole training steps, in the process that times them.
On a GPU: the caching allocator's peak.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import vaefast as vf
from vaefast.backends.native._buffers import buffers

from . import ROOT
from .case import Call, Case, Inputs, nbytes
from .cases import collect

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "VAEFAST_BUFFER_CACHE": "0",
}
COARSE = 4 << 20

Peaks = dict[str, dict[str, dict[str, Any]]]


def peaks(case: Case, device: torch.device, small: bool = False) -> Peaks:
    """`{pass: {implementation: {"bytes", "by"}}}` for `case`, measured apart from this process."""
    if device.type == "cuda":
        return _measure(case, device, "inductor")
    command = [sys.executable, "-m", __name__, case.name, str(torch.get_num_threads())]
    done = subprocess.run(
        [*command, *(["small"] if small else [])],
        cwd=ROOT,
        env={**os.environ, **MALLOC},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {case.name} failed:\n{done.stderr[-2000:]}")
    result: Peaks = json.loads(done.stdout.splitlines()[-1])
    return result


def here(calls: Mapping[str, Call]) -> dict[str, dict[str, Any]]:
    """`{implementation: {"bytes", "by"}}` of calls that have run, in this process: torch's
    allocations alone, without the memory that the core keeps from call to call."""
    result = {}
    limit, buffers.limit = buffers.limit, 0
    try:
        for name, call in calls.items():
            buffers.clear()
            gc.collect()
            with vf.backend(call.backend):
                result[name] = {"bytes": allocated(call.run), "by": "allocator"}
    finally:
        buffers.limit = limit
    return result


def _measure(case: Case, device: torch.device, compiler: str) -> Peaks:
    inputs = case.make(device)
    result: Peaks = {}
    for what in case.passes:
        result[what] = {}
        for name in case.implementations(device):
            run, backend = case.call(name, what, inputs, compiler)
            with vf.backend(backend):
                try:
                    for _ in range(3):
                        run()
                except Exception as error:
                    # What cannot run was told where it was timed; there is no peak of it.
                    print(f"{case.name}, {name}: {error}".splitlines()[0][:200], file=sys.stderr)
                    continue
                result[what][name] = _peak(run, inputs, device)
    return result


def _peak(run: Callable[[], Any], inputs: Any, device: torch.device) -> dict[str, Any]:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del kept
        return {"bytes": peak, "by": "cuda"}
    tensors = (*inputs.leaves, *inputs.constants) if isinstance(inputs, Inputs) else ()
    if nbytes(*tensors) > COARSE and sys.platform == "linux":
        return {"bytes": resident(run), "by": "resident"}
    return {"bytes": allocated(run), "by": "allocator"}


def resident(run: Callable[[], Any]) -> int:
    """Growth of this process's peak resident set while `run` runs."""
    ctypes.CDLL(None).malloc_trim(0)
    # Resets the high-water mark to the current size (proc_pid_clear_refs(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    kept = run()
    after = _status("VmHWM")
    del kept
    return after - before


def allocated(run: Callable[[], Any]) -> int:
    """Peak of what torch's CPU allocator hands out while `run` runs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = run()
    del kept
    events = profile.profiler.kineto_results.events()
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = peak = 0
    for _, size in memory:
        now += size
        peak = max(peak, now)
    return peak


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main(name: str, threads: str, *small: str) -> None:
    torch.set_num_threads(int(threads))
    (case,) = [c for c in collect(name) if c.name == name]
    chosen, compiler = (case.small(), "aot_eager") if small else (case, "inductor")
    print(json.dumps(_measure(chosen, torch.device("cpu"), compiler)))


if __name__ == "__main__":
    main(*sys.argv[1:])
