"""Small calls of the noise by itself."""

from __future__ import annotations

import vaefast as vf

from ..small_call import F64, Operator, randn, state


def calls() -> list[Operator]:
    return [
        *(
            Operator(
                "random",
                kind,
                lambda: ([], randn((33, 127))),
                lambda x, kind=kind: (
                    getattr(vf.random, kind)(tuple(x.shape), state(x), dtype=x.dtype),
                ),
                F64,
            )
            for kind in ("normal", "uniform")
        ),
    ]
