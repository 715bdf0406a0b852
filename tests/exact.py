"""A likelihood's value and gradient against 150 digits, up to its inputs' rounding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import mpmath as mp
import torch
from torch import Tensor

import vaefast as vf
from vaefast.likelihoods import Likelihood

# Of (x, *theta), all mpmath numbers.
Density = Callable[..., mp.mpf]
Point = tuple[float, ...]


def truth(density: Density, points: tuple[Point, ...]) -> tuple[Tensor, Tensor]:
    """Per point the value and the gradient, and what an input's relative change adds to each.

    Returns `[points, 1 + parameters]` twice, in float64.
    """
    found = [_at(density, point) for point in points]
    values, conditions = zip(*found, strict=True)
    wide = torch.float64
    return torch.tensor(values, dtype=wide), torch.tensor(conditions, dtype=wide)


@functools.cache
def _at(density: Density, point: Point) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`truth` at one point: tests repeat points, and take them on every backend."""
    with mp.workdps(150):
        # A likelihood of integers is taken as the function of a real x that its formula is.
        arguments = list(map(mp.mpf, point))
        free = range(1 if arguments[0] == 0 else 0, len(arguments))

        @functools.cache
        def derivative(*which: int) -> mp.mpf:
            return _difference(density, arguments, which)

        values = [density(*arguments)]
        conditions = [sum(abs(arguments[k] * derivative(k)) for k in free)]
        for j in range(1, len(arguments)):
            values.append(derivative(j))
            conditions.append(sum(abs(arguments[k] * derivative(*sorted((j, k)))) for k in free))
    return tuple(map(float, values)), tuple(map(float, conditions))


def _difference(at: Density, of: Sequence[mp.mpf], which: tuple[int, ...]) -> mp.mpf:
    """The central difference in each argument of `which`, one after the other."""
    if not which:
        return at(*of)
    first, *rest = which
    step = mp.mpf(10) ** -25 * (abs(of[first]) or 1)
    up, down = list(of), list(of)
    up[first] += step
    down[first] -= step
    return (_difference(at, up, tuple(rest)) - _difference(at, down, tuple(rest))) / (2 * step)


def check(
    likelihood: Likelihood,
    density: Density,
    points: Sequence[Point],
    device: str,
    dtype: torch.dtype,
    ulps: float = 8.0,
) -> None:
    """Asserts value and gradients within `ulps` of the truth and of what the inputs' rounding does.

    An input is known to half an ulp: no formula can tell the value better than that leaves it.
    """
    columns = torch.tensor(points, dtype=torch.float64).to(dtype).T.contiguous()
    rounded = tuple(tuple(p) for p in columns.T.double().tolist())
    values, conditions = truth(density, rounded)
    x, *theta = (c.to(device) for c in columns)
    leaves = [t.clone().requires_grad_() for t in theta]
    params = leaves[0] if len(leaves) == 1 else tuple(leaves)
    loss = vf.nll(params, x, likelihood, reduction="none")
    loss.sum().backward()
    got = torch.stack([loss.detach(), *(t.grad for t in leaves)], 1).double().cpu()
    assert torch.isfinite(got).all(), (
        f"not finite at {rounded[int((~got.isfinite()).nonzero()[0, 0])]}"
    )
    info = torch.finfo(dtype)
    # What is below 1e-30 beside 1 counts as nothing, and the truth itself ends at 1e-100.
    floor = 1e-30 if dtype == torch.float32 else 1e-100
    allowed = ulps * info.eps * (values.abs() + conditions) + floor
    excess = (got - values).abs() / allowed
    worst = divmod(int(excess.argmax()), excess.shape[1])
    what = "value" if worst[1] == 0 else f"derivative {worst[1]}"
    assert excess.max() <= 1, (
        f"{what} at {rounded[worst[0]]}: {got[worst].item()!r}, wanted {values[worst].item()!r}, "
        f"{excess.max().item():.3g} of what is allowed"
    )
