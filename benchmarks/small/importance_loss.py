"""Small calls of `importance_loss`."""

from __future__ import annotations

import vaefast as vf

from ..small_call import Operator, leaves


def calls() -> list[Operator]:
    return [
        *(
            Operator(
                "importance_loss",
                bound,
                leaves((7, 33)),
                lambda w, bound=bound: (vf.importance_loss(w, bound=bound),),
            )
            for bound in ("iwae", "renyi")
        ),
    ]
