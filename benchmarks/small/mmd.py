"""Small calls of `mmd`."""

from __future__ import annotations

from typing import Any

import vaefast as vf

from ..small_call import Operator, leaves, pairs


def calls() -> list[Operator]:
    found = []
    for points, others, label, dtype in pairs():
        for kernel in ("imq", "rbf"):
            distance: Any = lambda x, y, kernel=kernel: (vf.mmd(x, 0.5 * y + 0.5, kernel=kernel),)  # noqa: E731
            given = leaves(points, others)
            found.append(Operator("mmd", f"{kernel}, {label}", given, distance, dtype))
    return found
