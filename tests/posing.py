"""CPU tensors that pose as a GPU's, so that a GPU's calls are walked without one: the Python is a
GPU's, the kernels are the CPU's, and where each would have run is written down."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vaefast import _looks, _torch
from vaefast.ops import _plans

_ASKED: Any = torch._C.TensorBase


class Posing:
    """`launches`: of each prepared call, its name and where it was to run: (device, stream).
    `device` and `stream` are those of every tensor and current."""

    def __init__(self) -> None:
        self.device, self.stream = 0, 7
        self.launches: list[tuple[str, int, int]] = []

    def names(self) -> list[str]:
        return [name for name, _, _ in self.launches]

    def look_of(self, *tensors: torch.Tensor) -> Callable[..., bool]:
        """Tensors are on one device, which their look does not say."""
        looks_so, device = _torch.look_of(*tensors), self.device
        return lambda *given: self.device == device and looks_so(*given)

    def wrapped(self, name: str, prepared: Callable[..., None]) -> Callable[..., None]:
        def call(where: Any, *given: Any) -> None:
            device, stream, workspace, size, holds = where
            assert (size == 0) == (workspace == 0) and (holds is None) == (size == 0)
            self.launches.append((name, device, stream))
            prepared(1, *given)

        return call


def pose(monkeypatch: pytest.MonkeyPatch) -> Posing:
    """Until `monkeypatch` takes it back; no plan of it is kept."""
    from vaefast import _C
    from vaefast.backends.native import _place, nll, sample_kl

    made = Posing()
    # One descriptor for the other: no call of Python's is added.
    monkeypatch.setattr(torch.Tensor, "is_cpu", _ASKED.is_cuda, raising=False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", _ASKED.is_cpu, raising=False)
    monkeypatch.setattr(torch.Tensor, "get_device", lambda _: made.device, raising=False)
    monkeypatch.setattr(_place, "raw_stream", lambda device: 100 * device + made.stream)
    prepare_sample_kl, prepare_nll, scale = _C.prepare_sample_kl, _C.prepare_nll, _C.scale

    def of_sample_kl(*args: Any) -> Any:
        calls = prepare_sample_kl(*args)
        names = ("sample_kl", "sample_kl_backward")
        return tuple(made.wrapped(n, c) for n, c in zip(names, calls, strict=True))

    def of_nll(*args: Any) -> Any:
        calls = prepare_nll(*args)
        return tuple(made.wrapped(n, c) for n, c in zip(("nll", "scale"), calls, strict=True))

    def of_scale(*args: Any) -> None:
        made.launches.append(("scale", *args[-1][:2]))
        scale(*args[:-1], 1)

    def workspace(grid: Any, reduce: int, *_: Any) -> int:
        return 64 if reduce > 1 else 0

    monkeypatch.setattr(_C, "prepare_sample_kl", of_sample_kl)
    monkeypatch.setattr(_C, "prepare_nll", of_nll)
    monkeypatch.setattr(_C, "scale", of_scale)
    monkeypatch.setattr(_C, "workspace", workspace, raising=False)
    for module in (sample_kl, nll):
        monkeypatch.setattr(module, "is_on_cpu", lambda _: False)
        # Those of the CPU stay where they are.
        cache = functools.lru_cache(maxsize=64)
        monkeypatch.setattr(module, "_made", cache(module._made.__wrapped__))
    monkeypatch.setattr(_plans, "kept", _plans.Kept())
    monkeypatch.setattr(_looks, "look_of", made.look_of)
    return made
