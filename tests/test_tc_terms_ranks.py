"""Two processes that share their posteriors give the terms of one process with the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import vaefast as vf

RANKS, LOCAL, DIMS, DATASET = 2, 9, 4, 500

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available() or sys.platform == "win32",
    reason="needs gloo",
)


def whole_batch() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    eps, mu, logvar = torch.randn(3, RANKS * LOCAL, DIMS, generator=generator, dtype=torch.float64)
    return [mu + torch.exp(0.5 * logvar) * eps, mu, logvar]


def loss(terms: vf.TCTerms) -> Tensor:
    return (terms.mi + 6 * terms.tc + 0.5 * terms.dim_kl).mean()


def cases() -> list[tuple[str, str]]:
    served = [name for name in vf.available_backends() if name != "triton"]
    return [(method, backend) for method in ("mss", "mws") for backend in served]


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    results = []
    for method, backend in cases():
        mine = slice(rank * LOCAL, (rank + 1) * LOCAL)
        leaves = [t[mine].clone().requires_grad_() for t in whole_batch()]
        with vf.backend(backend):
            terms = vf.tc_terms(*leaves, dataset_size=DATASET, method=method, gather=True)
            loss(terms).backward()
        # DistributedDataParallel averages over the ranks.
        results.append([*(t.detach() for t in terms), *(t.grad / RANKS for t in leaves)])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# One pair of processes for all cases: most of the time is their start.
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
