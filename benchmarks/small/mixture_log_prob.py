"""Small calls of `mixture_log_prob`."""

from __future__ import annotations

from typing import Any

import vaefast as vf

from ..small_call import Operator, leaves, one, pairs


def calls() -> list[Operator]:
    found = [
        Operator(
            "mixture_log_prob",
            label,
            leaves(points, others, others, others[:1]),
            one(vf.mixture_log_prob),
            dtype,
        )
        for points, others, label, dtype in pairs()
    ]
    far: Any = lambda z, m, v: (vf.mixture_log_prob(100 + z, m, v),)  # noqa: E731
    shapes = (33, 9), (17, 9), (17, 9)
    return [*found, Operator("mixture_log_prob", "of far points", leaves(*shapes), far)]
