"""Small calls of `rsample`."""

from __future__ import annotations

import vaefast as vf

from ..small_call import Operator, leaves, state


def calls() -> list[Operator]:
    grid = (33, 127)
    return [
        Operator("rsample", "", leaves(grid, grid), lambda m, v: (vf.rsample(m, v, seed=3),)),
        Operator(
            "rsample",
            "by a state, 3 samples",
            leaves(grid, grid),
            lambda m, v: (vf.rsample(m, v, seed=state(m), num_samples=3),),
        ),
    ]
