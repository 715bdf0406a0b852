"""A stored gradient times the upstream one, in place."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_(grad: Tensor, upstream: Tensor) -> None:
    """grad *= upstream, with the product taken in float32 or wider."""
    grad.mul_(upstream.to(torch.promote_types(grad.dtype, torch.float32)))
