"""The likelihoods with a class dimension as differentiable PyTorch.

params are [R, C, S], with C the classes; a position is one of R x S. Row r has the target of row
r % T, T the target's rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..._args import compute_dtype
from .._options import RowNllOptions
from ._exact import clamp, logsumexp, tanh
from .likelihoods.pixels import bin_nll
from .sample_kl import unmasked

Formula = Callable[[Tensor, Sequence[Tensor], tuple[float, ...]], Tensor]


def row_nll(
    params: Tensor,
    target: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    options: RowNllOptions,
) -> Tensor:
    """-log p(target | params), reduced as `options` says: [R, S], [R / segments] or a scalar."""
    dtype = compute_dtype(params)
    wide = params.to(dtype)
    if mask is not None:
        target = _kept(target, mask)
        mask = _repeated(mask, params)
        wide = unmasked(wide, mask.unsqueeze(1))
    values = ROW_FORMULAS[options.form](wide, target, options.numbers)
    if weight is not None:
        values = values * unmasked(_repeated(weight.to(dtype), params), mask)
    if mask is not None:
        values = torch.where(mask, values, 0.0)
    if options.reduce == "sum":
        values = values.sum()
    elif options.reduce == "sample":
        samples = values.shape[0] // options.segments
        values = values.reshape(samples, -1).sum(1)
    return values * options.factor


def categorical(params: Tensor, target: Sequence[Tensor], numbers: tuple[float, ...]) -> Tensor:
    """logsumexp(l) - l_x; NaN where x is no class. target: ([T, S] indices,)."""
    index = _repeated(target[0].long(), params)
    if not params.shape[1]:
        return params.sum(1) + math.nan
    inside = (index >= 0) & (index < params.shape[1])
    log_p = torch.log_softmax(params, 1)
    picked = log_p.gather(1, torch.where(inside, index, 0).unsqueeze(1)).squeeze(1)
    return torch.where(inside, -picked, math.nan)


def multinomial(params: Tensor, target: Sequence[Tensor], numbers: tuple[float, ...]) -> Tensor:
    """N logsumexp(l) - sum x l - log(N! / prod x!), N = sum x; numbers: (0 to drop the constant,).

    target: ([T, C, 1] counts,), or (row starts [T + 1], columns, values) of a CSR matrix.
    """
    # The terms of a row of large counts cancel.
    logits = _double(params.squeeze(2))
    # Of no classes there are no counts, whose 0 times the logarithm of nothing is no number.
    normaliser = logsumexp(logits, 1) if logits.shape[1] else logits.sum(1)
    if len(target) == 1:
        x = _repeated(target[0].squeeze(-1).to(logits.dtype), params)
        dot = torch.where(x == 0, 0.0, x * torch.where(x == 0, 0.0, logits)).sum(1)
        total, factorials = x.sum(1), _log_factorial(x).sum(1)
    else:
        starts, columns, values = target
        each, inside = entry_rows(starts, len(columns))
        x = torch.where(inside, values.to(logits.dtype), 0.0)
        copies = logits.shape[0] // (len(starts) - 1)
        offset = torch.arange(copies, device=each.device) * (len(starts) - 1)
        rows = (torch.where(inside, each, 0) + offset[:, None]).flatten()
        columns, x, inside = (t.repeat(copies) for t in (columns, x, inside))
        zero = torch.zeros_like(normaliser)
        picked = torch.where(inside, logits[rows, columns], 0.0)
        dot = zero.index_add(0, rows, x * picked)
        total = zero.index_add(0, rows, x)
        factorials = zero.index_add(0, rows, _log_factorial(x).to(zero.dtype))
    result = total * normaliser - dot
    if numbers[0]:
        result = result - (_log_factorial(total) - factorials)
    return result.to(params.dtype).unsqueeze(1)


def entry_rows(starts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The row of each of a CSR matrix's `count` entries, and whether it is one of those that
    `starts` has, which may be some of the matrix's rows.

    How many entries a row has is read nowhere but on the device: on a GPU nothing waits.
    """
    places = torch.arange(count, dtype=starts.dtype, device=starts.device)
    rows = torch.searchsorted(starts, places, right=True) - 1
    return rows, (rows >= 0) & (rows < len(starts) - 1)


def logistic_mixture(
    params: Tensor, target: Sequence[Tensor], numbers: tuple[float, ...]
) -> Tensor:
    """-log sum_m softmax(l)_m prod_c P(x_c | m), by `DiscretizedLogisticMixture`'s layout.

    numbers: (a, b, level 0, bin, last level, least log-scale, mixtures, channels); a pixel x is
    level a x + b. target: ([T, channels, S],).
    """
    slope, shift, low, width, top, least, mixtures, channels = numbers
    count, each = int(mixtures), 3 if channels > 1 else 2
    logits = params[:, :count]
    groups = params[:, count:].unflatten(1, (int(channels), each, count))
    raw = _repeated(target[0].to(params.dtype), params)
    level = clamp(torch.round(raw * slope + shift), 0.0, top) + 0.0 * raw
    x = low + level * width
    losses = torch.zeros_like(logits)
    for c in range(int(channels)):
        mean = groups[:, c, 0]
        if c == 1:
            mean = mean + tanh(groups[:, 0, 2]) * x[:, None, 0]
        elif c == 2:
            mean = mean + tanh(groups[:, 1, 2]) * x[:, None, 0]
            mean = mean + tanh(groups[:, 2, 2]) * x[:, None, 1]
        log_scale = clamp(groups[:, c, 1], low=least)
        at = x[:, None, c] - mean
        losses = losses + bin_nll(at, log_scale, level[:, None, c], top, width, math.log(width))
    return logsumexp(logits, 1) - logsumexp(logits - losses, 1)


ROW_FORMULAS: dict[str, Formula] = {
    "categorical": categorical,
    "multinomial": multinomial,
    "logistic_mixture": logistic_mixture,
}


def _kept(target: Sequence[Tensor], mask: Tensor) -> tuple[Tensor, ...]:
    """The target with 0 at the positions that the mask [T, S] leaves out."""
    *where, values = target
    if where:
        rows, inside = entry_rows(where[0], len(values))
        kept = mask.squeeze(1)[rows.clamp(0, max(len(mask) - 1, 0))]
        return (*where, torch.where(kept | ~inside, values, 0))
    wide = mask.view(mask.shape[0], *[1] * (values.dim() - 2), mask.shape[1])
    return (torch.where(wide, values, 0),)


def _repeated(target: Tensor, params: Tensor) -> Tensor:
    copies = params.shape[0] // target.shape[0] if target.shape[0] else 1
    return target if copies == 1 else target.repeat(copies, *([1] * (target.dim() - 1)))


def _log_factorial(x: Tensor) -> Tensor:
    return torch.lgamma(_double(x) + 1)


def _double(x: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return x if x.device.type == "mps" else x.double()
