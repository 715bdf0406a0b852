"""A linear layer and its likelihood as differentiable PyTorch, with the logits stored whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._args import compute_dtype
from .._options import LinearNllOptions, NllOptions, RowNllOptions
from .nll import nll
from .row_nll import entry_rows, row_nll


def linear_nll(
    h: Tensor,
    weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    scalar: Tensor | None,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: LinearNllOptions,
) -> Tensor:
    """-log p(target | heads of h) of each of the rows h [R, H]."""
    given = [heads(h, w, b, options.dtype) for w, b in zip(weights, biases, strict=True)]
    params = [linked(g, link) for g, link in zip(given, options.links, strict=True)]
    return likelihood(params, scalar, target, mask, weight, options)


def heads(h: Tensor, w: Tensor | None, b: Tensor | None, dtype: torch.dtype) -> Tensor:
    """h W^T + b, or, without W, b of every row."""
    if w is None:
        assert b is not None
        return b.expand(h.shape[0], -1)
    return F.linear(h.to(dtype), w.to(dtype), None if b is None else b.to(dtype))


def linked(logits: Tensor, link: str) -> Tensor:
    """The parameter that a head's output stands for."""
    if link == "identity":
        return logits
    return torch.exp(logits) if link == "exp" else F.softplus(logits)


def likelihood(
    params: Sequence[Tensor],
    scalar: Tensor | None,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: LinearNllOptions,
) -> Tensor:
    """-log p of each row of params [R, V], which may repeat the target's rows."""
    if options.by_row:
        by_row = RowNllOptions(options.form, options.numbers, 1, "sample", 1.0, 1.0)
        return row_nll(params[0].unsqueeze(2), target, mask, weight, by_row)
    rows, width = params[0].shape
    x = dense(target, width, compute_dtype(*params))
    copies = rows // x.shape[0] if x.shape[0] else 1
    full = [p.reshape(copies, -1, width) for p in params]
    if scalar is not None:
        full.insert(options.scalar, scalar)
    each = NllOptions(
        options.form, options.numbers, options.scalar, 2, options.uint8_scale, 0, "sample", 1, 1
    )
    return nll(tuple(full), x, mask, weight, None, each).reshape(rows)


def dense(target: Sequence[Tensor], width: int, dtype: torch.dtype) -> Tensor:
    """The target [T, V] itself, or (row starts, columns, values) of a CSR matrix as a dense one.

    The row starts may be those of some rows alone, beside all columns and values.
    """
    if len(target) == 1:
        return target[0]
    starts, columns, values = target
    count = len(starts) - 1
    rows, inside = entry_rows(starts, len(columns))
    kind = dtype if values.is_floating_point() else values.dtype
    # Entries of other rows go to one more row.
    whole = torch.zeros(count + 1, width, dtype=kind, device=values.device)
    whole[torch.where(inside, rows, count), columns] = values.to(kind)
    return whole[:count]
