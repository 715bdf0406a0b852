"""What an operator costs on a GPU by each backend that has kernels there, from `gpu_costs.csv`: by
it `auto` chooses between backends that could both serve.

A row is of one operator, likelihood's form, pass and dtype, in a unit of its own: the time over
that of moving its bytes, counted in machine code, until a GPU has been measured. The passes of one
kind are added up. A kind that has no row, or a cost of one backend alone, is the native backend's.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import torch

FILE = Path(__file__).with_name("gpu_costs.csv")


class Kind(NamedTuple):
    """What a choice is made for. `form`: of a likelihood, else ""."""

    operator: str = ""
    form: str = ""
    dtype: torch.dtype | None = None

    def __str__(self) -> str:
        dtype = "" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return " ".join(part for part in (self.operator, self.form, dtype) if part)


class Cost(NamedTuple):
    """Of all passes, in `unit`."""

    native: float
    triton: float
    unit: str

    @property
    def chosen(self) -> str:
        return "native" if self.native <= self.triton else "triton"


@functools.cache
def table() -> dict[Kind, Cost]:
    """Of every kind that the file has.

    Raises:
        ValueError: a row's dtype is none, its cost no number, or its unit another than that of its
            kind's other passes.
    """
    found: dict[Kind, Cost] = {}
    with FILE.open(newline="") as lines:
        for row in csv.DictReader(lines):
            dtype = getattr(torch, row["dtype"], None)
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"dtype in {FILE.name} must be torch's, got {row['dtype']!r}")
            kind = Kind(row["operator"], row["form"], dtype)
            before = found.get(kind, Cost(0.0, 0.0, row["unit"]))
            if before.unit != row["unit"]:
                raise ValueError(
                    f"the passes of {kind} in {FILE.name} must have one unit, got "
                    f"{before.unit!r} and {row['unit']!r}"
                )
            native, triton = float(row["native"]), float(row["triton"])
            found[kind] = Cost(before.native + native, before.triton + triton, row["unit"])
    return found


def cost_of(kind: Kind) -> Cost | None:
    """What is known of a kind; of float16, which kernels treat as bfloat16, what is of that."""
    known = table().get(kind)
    if known is None and kind.dtype == torch.float16:
        known = table().get(kind._replace(dtype=torch.bfloat16))
    return known
