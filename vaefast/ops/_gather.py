"""The other ranks' posteriors, with gradients that find their way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def gathered(mu: Tensor, logvar: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor, int]:
    """mu and logvar of all ranks in the order of the ranks, and where this rank's begin.

    One collective for both. The backward pass sums what all ranks have to say about this rank's
    part, so that under DistributedDataParallel, which averages the ranks' gradients, the mean of
    the terms over the ranks has the gradient of the mean over the whole batch.

    Raises:
        RuntimeError: torch.distributed is not initialised.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError("gather=True takes torch.distributed.init_process_group() first")
    from torch.distributed.nn.functional import all_gather

    parts = all_gather(torch.stack([mu, logvar]), group=group or distributed.group.WORLD)
    whole_mu, whole_logvar = torch.cat(tuple(parts), 1).unbind(0)
    return whole_mu, whole_logvar, distributed.get_rank(group) * mu.shape[0]
