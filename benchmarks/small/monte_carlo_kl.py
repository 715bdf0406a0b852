"""Small calls of `monte_carlo_kl`."""

from __future__ import annotations

import vaefast as vf

from ..small_call import Operator, leaves, one


def calls() -> list[Operator]:
    samples, grid, prior = (7, 33, 50), (33, 50), (50,)
    return [
        Operator("monte_carlo_kl", "", leaves(samples, grid, grid), one(vf.monte_carlo_kl)),
        Operator(
            "monte_carlo_kl",
            "with a prior",
            leaves(samples, grid, grid, prior, prior),
            lambda z, m, v, *p: (vf.monte_carlo_kl(z, m, v, prior=p),),
        ),
    ]
