"""Small calls of `linear_nll`."""

from __future__ import annotations

import vaefast as vf

from ..small_call import Operator, randn, random_counts


def calls() -> list[Operator]:
    rows, hidden, items = 9, 33, 271
    shapes = (rows, hidden), (items, hidden), (items,)
    scaled = lambda: [0.1 * t for t in randn(*shapes)]  # noqa: E731
    multinomial = lambda h, w, b, x: (vf.linear_nll(h, w, b, x, "multinomial"),)  # noqa: E731
    # Two rows of logits at a time: chunks begin inside of the CSR matrix.
    poisson = lambda h, w, b, x: (vf.linear_nll(h, w, b, x, "poisson", memory=8 * items),)  # noqa: E731
    dense = lambda: (scaled(), [random_counts((rows, items))])  # noqa: E731
    sparse = lambda: (scaled(), [random_counts((rows, items)).to_sparse_csr()])  # noqa: E731
    return [
        Operator("linear_nll", "multinomial", dense, multinomial),
        Operator("linear_nll", "multinomial CSR", sparse, multinomial),
        Operator("linear_nll", "poisson", dense, poisson),
        Operator("linear_nll", "poisson CSR, in chunks", sparse, poisson),
    ]
