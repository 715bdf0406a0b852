"""What the tests that walk the operators need of each: a file per operator, which they find.

`make`, `call`, `truth`, and `SHARE` where it is not 1: a random case, its outputs and what they
should be (`fuzz_operators.Operator`). `TRACED`: calls for the tracers. `SETTINGS`: for each number
that people change from step to step a function of it and of tensors, and their shapes.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def found() -> dict[str, ModuleType]:
    """The file of each operator, by the operator's name."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}
