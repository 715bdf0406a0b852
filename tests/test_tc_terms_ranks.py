"""Two processes that share their posteriors give the terms of one process with the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import DATASET, LOCAL, RANKS, cases, loss, run_rank, whole_batch

import vaefast as vf

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available() or sys.platform == "win32",
    reason="needs gloo",
)


# One pair of processes for all cases: most of the time is their start.
@pytest.mark.slow
def test_two_ranks_are_one_batch(tmp_path: Path) -> None:
    mp.spawn(run_rank, (str(tmp_path),), nprocs=RANKS)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for case, (method, backend) in enumerate(cases()):
        leaves = [t.requires_grad_() for t in whole_batch()]
        with vf.backend(backend):
            terms = vf.tc_terms(*leaves, dataset_size=DATASET, method=method)
            gradients = torch.autograd.grad(loss(terms), leaves)
            part = [t[:LOCAL] for t in leaves]
            alone = vf.tc_terms(*part, dataset_size=DATASET, method=method)
        for index, want in enumerate((*terms, *gradients)):
            got = torch.cat([rank[case][index] for rank in parts])
            torch.testing.assert_close(got, want)
        assert not torch.allclose(alone.tc, terms.tc[:LOCAL])
