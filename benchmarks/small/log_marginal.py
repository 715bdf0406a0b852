"""Small calls of `log_marginal`."""

from __future__ import annotations

import vaefast as vf

from ..small_call import Operator, randn


def calls() -> list[Operator]:
    return [
        Operator(
            "log_marginal",
            "",
            lambda: ([], randn((33, 50))),
            lambda data: (vf.log_marginal(lambda x, k: x.sum(1).expand(k, -1), data, 6, 4),),
        ),
    ]
