"""What `benchmarks/gpu.sh` compares `mmd` with on a GPU: matrix products, compiled."""

from __future__ import annotations

import pytest
import torch
from test_benchmarks import load
from torch.utils._python_dispatch import TorchDispatchMode

BATCHES = (1024, 4096, 8192)


class Recorded(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", BATCHES)
def test_mmd_is_beside_compiled_matrix_products(batch: int) -> None:
    gpu_stages, case = load("gpu_stages"), load("case")
    assert batch in gpu_stages.BATCHES
    (distance,) = (one for one in gpu_stages.pair_cases(batch) if one.op == "mmd")
    assert distance.shape[0] == batch
    names = distance.implementations(torch.device("cpu"))
    assert case.EAGER in names and case.COMPILED in names
    inputs = distance.small().make(torch.device("cpu"))
    with Recorded() as ran:
        distance.call(case.EAGER, case.BOTH, inputs).run()
    # Three products of distances, and those of their gradients in the one leaf.
    assert sum(name.startswith("aten::mm") for name in ran.names) >= 6
    assert not any("cdist" in name for name in ran.names)
