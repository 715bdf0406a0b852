"""What all operators' fuzzing is written with."""

from __future__ import annotations

from typing import Any

from fuzz_cases import Case
from torch import Tensor

Tensors = dict[str, Tensor]


REDUCTIONS = ("none", "sample", "batchmean", "sum", "mean")


TRANSFORM = ("param", "min_std", "clamp")


def settings_of(case: Case, *names: str) -> dict[str, Any]:
    return {n: case.settings[n] for n in names if n in case.settings}


def tensors_of(t: Tensors, *names: str) -> Tensors:
    return {n: t[n] for n in names if n in t}
