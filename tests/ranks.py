"""What each of two processes that share their posteriors computes: see test_tc_terms_ranks.py.

A module by itself: a spawned process finds it by its name, which it does not for a test file.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

import vaefast as vf

RANKS, LOCAL, DIMS, DATASET = 2, 9, 4, 500


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
    # A rank that leaves while another still talks to it may abort that one.
    dist.barrier()
    dist.destroy_process_group()
