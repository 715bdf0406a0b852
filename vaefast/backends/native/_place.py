"""Where on a GPU a call of the compiled core runs, and the memory for its partial sums."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _C
from ..._torch import raw_stream

Place = tuple[int, int, int, int, Tensor | None]


def place(
    tensor: Tensor,
    grid: tuple[int, int, int],
    reduce: int = 0,
    scalar_grad: bool = False,
    target_rows: int = 0,
) -> Place:
    """(device, stream, workspace, its bytes, and what holds it until the call is queued).

    The workspace goes back to torch's allocator after that, which hands it out again on the same
    stream only, behind the kernel.
    """
    # Two of the reductions need none: "" and "elem".
    size = _C.workspace(grid, reduce, scalar_grad, target_rows) if reduce > 1 or scalar_grad else 0
    return place_with(tensor, size)


def place_with(tensor: Tensor, size: int) -> Place:
    """As `place`, with a workspace of `size` bytes."""
    device = tensor.get_device()
    if not size:
        return device, raw_stream(device), 0, 0, None
    workspace = tensor.new_empty(size, dtype=torch.uint8)
    return device, raw_stream(device), workspace.data_ptr(), size, workspace
