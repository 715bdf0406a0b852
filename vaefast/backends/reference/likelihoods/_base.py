"""The registry of formulas."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Formula = Callable[[Tensor, tuple[Tensor, ...], tuple[float, ...]], Tensor]
FORMULAS: dict[str, Formula] = {}
# Those of x - loc, loc being the first parameter: their derivative in x is minus that in loc.
LOCATION: set[str] = set()


def formula(function: Formula) -> Formula:
    """Registers `function` under its own name."""
    FORMULAS[function.__name__] = function
    return function


def location_formula(function: Formula) -> Formula:
    """As `formula`, of a location family."""
    LOCATION.add(function.__name__)
    return formula(function)
