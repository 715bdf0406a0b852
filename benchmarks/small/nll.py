"""Small calls of `nll`."""

from __future__ import annotations

import torch
from torch import Tensor

import vaefast as vf
from vaefast import likelihoods
from vaefast.likelihoods import Likelihood

from ..bench_nll import drawn
from ..small_call import CPU, F64, Operator, randn, random_counts


def calls() -> list[Operator]:
    shape = (9, 3, 41)
    made = [_elementwise(name, cls(), shape) for name, cls in likelihoods.registered().items()]
    classes, counts = (5, 17), (9, 1271)
    mixture = vf.DiscretizedLogisticMixture(3, 10)
    levels = lambda shape: torch.randint(0, 256, shape, dtype=torch.uint8)  # noqa: E731
    of = lambda model: lambda p, x: (vf.nll(p, x, model),)  # noqa: E731
    pixels = lambda: (randn(shape), [torch.randint(0, 256, shape, dtype=torch.uint8)])  # noqa: E731
    masked = lambda: ([*randn(shape)], [torch.rand(shape, dtype=F64), torch.rand(shape) < 0.7])  # noqa: E731
    return [
        *made,
        *(
            Operator(
                "nll",
                f"categorical {count} of {classes[1]} positions",
                lambda count=count: (
                    randn((classes[0], count, classes[1])),
                    [torch.randint(0, count, classes)],
                ),
                of("categorical"),
            )
            for count in (10, 100, 300)
        ),
        Operator(
            "nll",
            "categorical side by side",
            lambda: (randn(counts), [torch.randint(0, counts[1], counts[:1])]),
            of("categorical"),
        ),
        Operator(
            "nll",
            "categorical side by side, 10000 classes",
            lambda: (randn((3, 10_000)), [torch.randint(0, 10_000, (3,))]),
            of("categorical"),
        ),
        Operator(
            "nll",
            "multinomial",
            lambda: (randn(counts), [random_counts(counts)]),
            of("multinomial"),
        ),
        Operator(
            "nll",
            "multinomial CSR",
            lambda: (randn(counts), [random_counts(counts).to_sparse_csr()]),
            of("multinomial"),
        ),
        Operator(
            "nll",
            "discretized_logistic_mixture",
            lambda: (randn((3, mixture.size, 5, 7)), [levels((3, 3, 5, 7))]),
            of(mixture),
            atol=1e-3,
        ),
        Operator("nll", "bernoulli uint8", pixels, lambda p, x: (vf.nll(p, x, "bernoulli"),)),
        Operator(
            "nll",
            "bernoulli masked",
            masked,
            lambda p, x, mask: (vf.nll(p, x, "bernoulli", mask=mask, reduction="sample"),),
        ),
        Operator(
            "nll",
            "bernoulli binarised",
            masked,
            lambda p, x, mask: (vf.nll(p, x, vf.Bernoulli(binarize=True), seed=3),),
        ),
    ]


def _elementwise(name: str, model: Likelihood, shape: tuple[int, ...]) -> Operator:
    def make() -> tuple[list[Tensor], list[Tensor]]:
        params, target = drawn(model, shape, CPU)
        return [p.double() for p in params], [target.double()]

    def run(*tensors: Tensor) -> tuple[Tensor]:
        *params, target = tensors
        return (vf.nll(params[0] if len(params) == 1 else tuple(params), target, model),)

    return Operator("nll", name, make, run, atol=1e-3)
