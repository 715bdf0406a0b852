"""All cases, found by walking this package's bench files."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from vaefast.likelihoods import load_plugins

from .case import Case


def collect(*only: str) -> list[Case]:
    """Every case, or those whose name contains any of `only`.

    Raises:
        ValueError: two cases have one name, or none is left.
    """
    load_plugins()
    found: list[Case] = []
    for module in sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])):
        if module.startswith("bench_"):
            found += importlib.import_module(f"{__package__}.{module}").cases()
    names = [case.name for case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"benchmark cases must have different names, got twice: {twice}")
    kept = [c for c in found if not only or any(text in c.name for text in only)]
    if not kept:
        raise ValueError(
            f"no case's name contains {' or '.join(only)}; `python -m benchmarks list` has them all"
        )
    return kept
