"""A decoder's last linear layer and its likelihood: Mult-VAE's items and a single-cell decoder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import vaefast as vf
from vaefast.likelihoods import Likelihood

from .bench_row_nll import DENSITY
from .case import Formula, Inputs, OpCase, Shape, leaf, nbytes


def eager(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor]:
    log_p = F.log_softmax(F.linear(h, weight, bias), -1)
    return (-(log_p * x).sum(-1).mean(),)


def eager_sparse(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor]:
    return eager(h, weight, bias, x.to_dense())


def eager_categorical(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor]:
    return (F.cross_entropy(F.linear(h, weight, bias), x),)


def chunked(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor]:
    """torch 2.13's own, which takes classes alone in chunks."""
    options = torch.nn.LinearCrossEntropyOptions()
    return (F.linear_cross_entropy(h, weight, x, linear_bias=bias, options=options),)


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


def fused(model: Likelihood) -> Formula:
    return lambda h, weight, bias, x: (vf.linear_nll(h, weight, bias, x, model),)


def inputs(
    shape: Shape, device: torch.device, target: Callable[[int, int, torch.device], Tensor]
) -> Inputs:
    batch, hidden, items = shape
    h = torch.randn(batch, hidden, device=device)
    bound = 1 / math.sqrt(hidden)
    weight = torch.empty(items, hidden, device=device).uniform_(-bound, bound)
    bias = torch.empty(items, device=device).uniform_(-bound, bound)
    leaves = tuple(leaf(t) for t in (h, weight, bias))
    return Inputs(leaves, (target(batch, items, device),), (None,))


def classes(batch: int, items: int, device: torch.device) -> Tensor:
    return torch.randint(items, (batch,), device=device)


def dense_counts(batch: int, items: int, device: torch.device) -> Tensor:
    return sparse_counts(batch, items, device).to_dense()


def sparse_counts(batch: int, items: int, device: torch.device) -> Tensor:
    """Ones at every hundredth item, each row's by an offset of its own."""
    each = max(1, round(DENSITY * items))
    step = items // each
    start = torch.randint(0, step, (batch, 1), device=device)
    columns = (start + step * torch.arange(each, device=device)).flatten()
    rows = each * torch.arange(batch + 1, device=device)
    values = torch.ones(len(columns), device=device)
    return torch.sparse_csr_tensor(rows, columns, values, (batch, items), check_invariants=False)


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


class Target(NamedTuple):
    """A kind of target, by its likelihood, and what takes it: written out and in chunks."""

    make: Callable[[int, int, torch.device], Tensor]
    model: Likelihood
    eager: Formula
    chunked: Formula | None = None


TARGETS = {
    "multinomial": Target(dense_counts, vf.Multinomial(const=False), eager),
    "multinomial sparse": Target(sparse_counts, vf.Multinomial(const=False), eager_sparse),
    "categorical": Target(classes, vf.Categorical(), eager_categorical, chunked),
}


def case(variant: str, items: int, **targets: float) -> OpCase:
    target = TARGETS[variant]
    formulas = {"eager": target.eager, "products": three_products}
    if target.chunked is not None and hasattr(F, "linear_cross_entropy"):
        formulas["chunked"] = target.chunked
    return LinearCase(
        "linear_nll",
        (256, 256, items),
        partial(inputs, target=target.make),
        formulas,
        fused(target.model),
        variant,
        targets=targets,
        small_shape=(5, 7, 41),
        kept=chunk,
    )


def cases() -> list[OpCase]:
    return [
        *(case(variant, 50_000, products=1 / 1.1) for variant in TARGETS),
        # One of eager's tensors takes 1 GiB, and it has four.
        dataclasses.replace(case("multinomial sparse", 1_000_000), alone=True),
    ]


def test_linear_nll(measure: Callable[[], None]) -> None:
    measure()
