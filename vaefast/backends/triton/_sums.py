"""The second of two stages: partial sums to results, in one fixed order, without atomics."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grid import Work, launch

# More partial sums of one result than this are first summed in groups.
_GROUP = 8192


class Sums(NamedTuple):
    """Where a kernel writes its sums, and what it multiplies them by: the result itself, or one
    partial sum per program, `[groups, count]`, to be added up."""

    out: Tensor
    partial: Tensor | None
    factor: float

    @property
    def to(self) -> Tensor:
        """What the kernel writes."""
        return self.out if self.partial is None else self.partial

    @property
    def now(self) -> float:
        """The factor in the kernel."""
        return self.factor if self.partial is None else 1.0

    def finish(self) -> None:
        """The second stage, where there is one."""
        if self.partial is not None:
            total(self.partial, self.out.view(-1), self.factor)


def room(work: Work, over: str, per: str, out: Tensor, factor: float) -> Sums:
    """Room for the sums `out`: kernels walk the grid for sums `over` "sample", "dim" or "sum".

    Sums over a sample can be added up `per` "sum" as well.
    """
    made = (work.rows if over == "sample" else 1) * work.splits
    made = work.programs if over == "sum" else made
    if over == "dim":
        if work.splits == 1:
            return Sums(out, None, factor)
        shape = (work.splits, out.numel())
        return Sums(out, out.new_empty(shape).t(), factor)
    groups = work.rows // work.segments if over == "sample" and per == "sample" else 1
    if made == groups:
        return Sums(out, None, factor)
    return Sums(out, out.new_empty((groups, made // groups)), factor)


def total(partial: Tensor, out: Tensor, factor: float) -> None:
    """out[g] = factor * sum of row g of `partial`, `[groups, count]` of any strides."""
    groups, count = partial.shape
    if groups == 1 and count > 2 * _GROUP:
        # The tail is padded: a handful of zeros against a kernel with one more bound.
        parts = -(-count // _GROUP)
        padded = torch.nn.functional.pad(partial[0], (0, parts * _GROUP - count))
        first = torch.empty((1, parts), dtype=partial.dtype, device=partial.device)
        total(padded.view(parts, _GROUP), first[0], 1.0)
        partial, count = first, parts
    item = partial.stride(1)
    if item == 1:
        width = min(triton.next_power_of_2(count), 1024)
        height = min(triton.next_power_of_2(groups), max(1, 1024 // width))
    else:
        height = min(triton.next_power_of_2(groups), 128)
        width = min(triton.next_power_of_2(count), 8)
    launch(
        _sum_groups,
        -(-groups // height),
        out.device,
        out,
        partial,
        groups,
        count,
        partial.stride(0),
        item,
        factor,
        HEIGHT=height,
        WIDTH=width,
        num_warps=max(1, min(4, height * width // 128)),
        enable_fp_fusion=True,
    )


@triton.jit
def _sum_groups(
    out,
    partial,
    groups,
    count,
    group_stride,
    item_stride,
    factor: tl.float64,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    # out: [groups], partial: [groups, count]
    group = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None]
    DTYPE: tl.constexpr = partial.dtype.element_ty
    acc = tl.zeros((HEIGHT, WIDTH), DTYPE)
    for start in range(0, count, WIDTH):
        item = start + tl.arange(0, WIDTH)[None, :]
        live = (group < groups) & (item < count)
        place = group.to(tl.int64) * group_stride + item.to(tl.int64) * item_stride
        acc += tl.load(partial + place, mask=live, other=0.0)
    result = tl.sum(acc, 1) * tl.full((), factor, DTYPE)
    place = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    tl.store(out + place, result, mask=place < groups)
