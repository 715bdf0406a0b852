"""What docs/notes.md says of this machine, measured: the floor under a small call, and what the
fast path, the kept buffers and the cache cost or save."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vaefast as vf
from vaefast.backends.native import sample_kl
from vaefast.backends.native._buffers import buffers
from vaefast.ops import _plans

from . import record
from .bench_sample_kl import textbook
from .case import Call, leaf
from .harness import interleaved


class _Empty(torch.autograd.Function):
    """Two tensors in, a sample and a number out, and nothing computed."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mu, logvar)
        return mu.view_as(mu), logvar.new_empty(())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        return ctx.saved_tensors


def measure() -> dict[str, float]:
    """Microseconds by the name of the fact, medians of interleaved rounds."""
    large = _large()
    # Apart: a large call leaves no cache to a small one.
    times = _medians(_launch_bound())
    times |= _medians({f"{name}, kept buffers": run for name, run in large.items()})
    limit, buffers.limit = buffers.limit, 0
    try:
        return times | _medians({f"{name}, fresh memory": run for name, run in large.items()})
    finally:
        buffers.limit = limit


def _medians(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    times = interleaved({name: Call(run, "auto") for name, run in calls.items()}, rounds=40)
    return {name: 1e6 * summary.median for name, summary in times.items()}


def write(path: Path | None = None) -> None:
    """Measures and writes benchmarks/results/facts/<machine>.json."""
    device = torch.device("cpu")
    path = path or record.RESULTS / "facts" / record.default_path(device).name
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": record.machine(device), "microseconds": measure()}
    path.write_text(json.dumps(found, indent=1) + "\n")
    for name, value in found["microseconds"].items():
        print(f"{value:12.1f} us  {name}")


def _launch_bound() -> dict[str, Callable[[], Any]]:
    mu, logvar = (leaf(torch.randn(128, 20)) for _ in range(2))
    upstream = torch.randn(128, 20), torch.ones(())

    def both(outputs: tuple[Tensor, ...]) -> Any:
        return torch.autograd.grad(outputs, (mu, logvar), upstream)

    def slow_path() -> Any:
        _plans.kept.clear()
        sample_kl._made.cache_clear()
        return both(vf.sample_kl(mu, logvar, reduction="batchmean"))

    return {
        "sample_kl 128x20, eager": lambda: both(textbook(mu, logvar)),
        "sample_kl 128x20, an empty autograd function": lambda: both(_Empty.apply(mu, logvar)),
        "sample_kl 128x20, the fast path": lambda: both(
            vf.sample_kl(mu, logvar, reduction="batchmean")
        ),
        "sample_kl 128x20, the slow path and a new plan": slow_path,
    }


def _large() -> dict[str, Callable[[], Any]]:
    image, mean = torch.rand(64, 3, 256, 256), leaf(torch.randn(64, 3, 256, 256))
    mu, logvar = (leaf(torch.randn(256, 4, 64, 64)) for _ in range(2))
    upstream = torch.randn(256, 4, 64, 64), torch.ones(())

    def gaussian() -> Any:
        return torch.autograd.grad(vf.nll(mean, image, "gaussian"), mean)

    def sampling() -> Any:
        outputs = vf.sample_kl(mu, logvar, reduction="batchmean")
        return torch.autograd.grad(outputs, (mu, logvar), upstream)

    return {"nll gaussian 64x3x256x256": gaussian, "sample_kl 256x4x64x64": sampling}
