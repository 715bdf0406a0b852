"""Small calls of `annealed_log_weights`."""

from __future__ import annotations

import vaefast as vf

from ..small_call import F64, Operator, randn


def calls() -> list[Operator]:
    constants = lambda *shapes: lambda: ([], randn(*shapes))  # noqa: E731
    to = lambda z: -0.5 * z.square().sum(-1)  # noqa: E731
    return [
        Operator(
            "annealed_log_weights",
            "",
            constants((5, 3), (5, 3)),
            lambda m, v: (vf.annealed_log_weights(to, m, v, 4, steps=3, leapfrog=2, seed=3),),
            F64,
        ),
    ]
