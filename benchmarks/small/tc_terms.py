"""Small calls of `tc_terms`."""

from __future__ import annotations

from typing import Any

import vaefast as vf

from ..small_call import Operator, leaves, pairs


def calls() -> list[Operator]:
    found = []
    for points, _, label, dtype in pairs():
        for method in ("mss", "mws"):
            terms: Any = lambda *t, method=method: tuple(  # noqa: E731
                vf.tc_terms(*t, dataset_size=1000, method=method)
            )
            given = leaves(points, points, points)
            found.append(Operator("tc_terms", f"{method}, {label}", given, terms, dtype))
    return found
