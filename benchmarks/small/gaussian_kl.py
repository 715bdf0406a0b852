"""Small calls of `gaussian_kl`."""

from __future__ import annotations

import vaefast as vf

from ..small_call import Operator, leaves


def calls() -> list[Operator]:
    grid, prior = (33, 127), (127,)
    return [
        *(
            Operator(
                "gaussian_kl",
                how,
                leaves(grid, grid),
                lambda m, v, how=how: (vf.gaussian_kl(m, v, reduction=how),),
            )
            for how in ("batchmean", "none", "dim")
        ),
        Operator(
            "gaussian_kl",
            "with a prior",
            leaves(grid, grid, prior, prior),
            lambda m, v, pm, pv: (vf.gaussian_kl(m, v, prior_mu=pm, prior_scale=pv),),
        ),
    ]
