"""The one table of tolerances, and the two comparisons that read it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """`store`: of a value rounded to this dtype twice (a gradient as it is made, and times the
    upstream one), relative to it; `tiny`: its smallest step; `arithmetic`: of what is computed
    beside it, relative to the largest value of the result."""

    store: float
    tiny: float
    arithmetic: float


TABLE = {
    torch.float64: Tolerance(2.0**-52, 5e-324, 4e-15),
    torch.float32: Tolerance(2.0**-23, 1e-45, 2e-6),
    torch.bfloat16: Tolerance(2.0**-7, 1e-40, 2e-6),
    torch.float16: Tolerance(2.0**-10, 6e-8, 2e-6),
}

# KL in float32, relative to float64, at every scale of mu and logvar.
KL_RELATIVE = 1e-6

# A normal from the same two words, in units of its radius: log, sqrt, sin and cos, some ulp each.
NORMAL = {torch.float64: 2e-15, torch.float32: 6e-7}


def assert_close64(got: Tensor, want: Tensor, compute: torch.dtype, slack: float = 1.0) -> None:
    """Asserts that `got` is `want` (float64) to the rounding of its own dtype and of `compute`.

    NaN and infinities must stand in the same places. `slack` multiplies the arithmetic's share,
    for sums whose terms are larger than the result.
    """
    got = got.detach()
    own, arithmetic = TABLE[got.dtype], TABLE[compute].arithmetic
    want = want.detach().to(got.device)
    assert got.shape == want.shape, f"shape {list(got.shape)}, wanted {list(want.shape)}"
    finite = torch.isfinite(want)
    # What float64 can hold and this dtype cannot is infinite.
    finite &= want.abs() <= torch.finfo(got.dtype).max
    exact = want.to(got.dtype)[~finite].double()
    torch.testing.assert_close(got[~finite].double(), exact, equal_nan=True)
    got, want = got[finite].double(), want[finite]
    if want.numel() == 0:
        return
    bound = own.store * want.abs() + own.tiny + slack * arithmetic * want.abs().max()
    excess = ((got - want).abs() - bound).max().item()
    worst = int(((got - want).abs() - bound).argmax())
    assert excess <= 0, f"{got[worst].item()!r} is not {want[worst].item()!r}, by {excess:.3g}"


def gradient_arithmetic(gradient: Tensor) -> torch.dtype:
    """What a gradient is multiplied and summed in: a float64 loss does not widen a float32 one."""
    return torch.promote_types(gradient.dtype, torch.float32)


def assert_no_worse(got: Tensor, eager: Tensor, want: Tensor, compute: torch.dtype) -> None:
    """Asserts that the largest error of `got` is at most that of `eager`, plus the table's."""
    want = want.detach().to(got.device)
    ours = (got.detach().double() - want).abs().max().item()
    theirs = (eager.detach().double() - want).abs().max().item()
    own = TABLE[got.dtype]
    allowed = (own.store + TABLE[compute].arithmetic) * want.abs().max().item() + own.tiny
    # An eager result that overflowed allows everything, ours nothing more than the table.
    theirs = 0.0 if not theirs < float("inf") else theirs
    assert ours <= theirs + allowed, f"error {ours:.3g}, eager's {theirs:.3g} + {allowed:.3g}"


def assert_relative(got: Tensor, want: Tensor, bound: float) -> None:
    """Asserts an elementwise relative error of at most `bound`."""
    error = ((got.detach().double() - want) / want).abs().max().item()
    assert error <= bound, f"relative error {error:.3g} is above {bound:.3g}"
