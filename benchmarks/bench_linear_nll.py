"""A decoder's last linear layer and its likelihood: Mult-VAE's items and a single-cell decoder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import vaefast as vf

from .bench_row_nll import DENSITY
from .case import Inputs, OpCase, Shape, leaf, nbytes

MULT = vf.Multinomial(const=False)


def eager(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor]:
    log_p = F.log_softmax(F.linear(h, weight, bias), -1)
    return (-(log_p * x).sum(-1).mean(),)


def eager_sparse(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor]:
    return eager(h, weight, bias, x.to_dense())


def three_products(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor]:
    """What the layer and its backward pass multiply, and nothing else."""
    return (ThreeProducts.apply(h, weight, bias),)


class ThreeProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, weight, bias):  # type: ignore[no-untyped-def]
        logits = torch.mm(h, weight.t())
        ctx.save_for_backward(h, weight, bias, logits)
        return logits[0, 0].clone()

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        h, weight, bias, logits = ctx.saved_tensors
        return torch.mm(logits, weight), torch.mm(logits.t(), h), torch.zeros_like(bias)


def fused(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor]:
    return (vf.linear_nll(h, weight, bias, x, MULT),)


def inputs(shape: Shape, device: torch.device, sparse: bool) -> Inputs:
    batch, hidden, items = shape
    h = torch.randn(batch, hidden, device=device)
    bound = 1 / math.sqrt(hidden)
    weight = torch.empty(items, hidden, device=device).uniform_(-bound, bound)
    bias = torch.empty(items, device=device).uniform_(-bound, bound)
    leaves = tuple(leaf(t) for t in (h, weight, bias))
    return Inputs(leaves, (sparse_counts(batch, items, device, sparse),), (None,))


def sparse_counts(batch: int, items: int, device: torch.device, sparse: bool) -> Tensor:
    """Ones at every hundredth item, each row's by an offset of its own."""
    each = max(1, round(DENSITY * items))
    step = items // each
    start = torch.randint(0, step, (batch, 1), device=device)
    columns = (start + step * torch.arange(each, device=device)).flatten()
    rows = each * torch.arange(batch + 1, device=device)
    values = torch.ones(len(columns), device=device)
    x = torch.sparse_csr_tensor(rows, columns, values, (batch, items), check_invariants=False)
    return x if sparse else x.to_dense()


class LinearCase(OpCase):
    """Bound by its multiplications, which are timed alone beside it."""

    def check(self, inputs: Inputs, device: torch.device) -> None:
        formulas = {n: f for n, f in self.formulas.items() if n != "products"}
        OpCase.check(dataclasses.replace(self, formulas=formulas), inputs, device)

    def moved(self, what: str, inputs: Inputs) -> None:
        return None


def chunk(inputs: Inputs) -> int:
    """Of logits, as `linear_nll` documents its default."""
    return min(max(nbytes(inputs.leaves[1]) // 4, 32 << 20), 256 << 20)


def case(shape: Shape, sparse: bool, **targets: float) -> OpCase:
    textbook = eager_sparse if sparse else eager
    return LinearCase(
        "linear_nll",
        shape,
        partial(inputs, sparse=sparse),
        {"eager": textbook, "products": three_products},
        fused,
        "multinomial sparse" if sparse else "multinomial",
        targets=targets,
        small_shape=(5, 7, 41),
        kept=chunk,
    )


def cases() -> list[OpCase]:
    return [
        case((256, 256, 50_000), False, products=1 / 1.1),
        case((256, 256, 50_000), True, products=1 / 1.1),
        # One of eager's tensors takes 1 GiB, and it has four.
        dataclasses.replace(case((256, 256, 1_000_000), True), alone=True),
    ]


def test_linear_nll(measure: Callable[[], None]) -> None:
    measure()
