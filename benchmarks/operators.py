"""Small calls of every operator, found by walking the folder small/."""

from __future__ import annotations

import importlib
import pkgutil

from . import small
from .small_call import Operator


def operators() -> list[Operator]:
    """Every public operator, likelihood and kernel at least once."""
    names = sorted(module.name for module in pkgutil.iter_modules(small.__path__))
    return [
        call
        for name in names
        for call in importlib.import_module(f"{small.__name__}.{name}").calls()
    ]
