"""Small calls of `sample_kl`."""

from __future__ import annotations

import vaefast as vf

from ..small_call import F64, Operator, leaves


def calls() -> list[Operator]:
    grid, prior = (33, 127), (127,)
    return [
        Operator("sample_kl", "", leaves(grid, grid), lambda m, v: vf.sample_kl(m, v, seed=3)),
        Operator(
            "sample_kl",
            "float64",
            leaves(grid, grid),
            lambda m, v: vf.sample_kl(m, v, seed=3, reduction="sum"),
            F64,
        ),
        Operator(
            "sample_kl",
            "with a prior",
            leaves(grid, grid, prior, prior),
            lambda m, v, pm, pv: vf.sample_kl(m, v, seed=3, prior_mu=pm, prior_scale=pv),
        ),
        Operator(
            "sample_kl",
            "estimated",
            leaves(grid, grid),
            lambda m, v: vf.sample_kl(m, v, num_samples=5, seed=3, estimator="monte_carlo"),
        ),
        Operator(
            "sample_kl",
            "estimated, with a prior",
            leaves(grid, grid, prior, prior),
            lambda m, v, pm, pv: vf.sample_kl(
                *(m, v),
                prior_mu=pm,
                prior_scale=pv,
                num_samples=5,
                seed=3,
                estimator="monte_carlo",
            ),
        ),
    ]
