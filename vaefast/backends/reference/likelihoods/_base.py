"""The registry of formulas."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Formula = Callable[[Tensor, tuple[Tensor, ...], tuple[float, ...]], Tensor]
FORMULAS: dict[str, Formula] = {}


def formula(function: Formula) -> Formula:
    """Registers `function` under its own name."""
    FORMULAS[function.__name__] = function
    return function
