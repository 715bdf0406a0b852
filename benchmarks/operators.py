"""One small call of every operator: what a new machine runs first, and what is looked at for waits.

Each is compared with the plain PyTorch backend in float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vaefast as vf
from vaefast import likelihoods
from vaefast.likelihoods import Likelihood

from .bench_nll import drawn

CPU, F64, F32 = torch.device("cpu"), torch.float64, torch.float32
# Relative to the largest element too: a gradient may cancel.
TOLERANCE = {F32: 1e-4, F64: 1e-9}


class Operator(NamedTuple):
    """A call of the public operator `op`.

    `make` gives its leaves and its constants in float64, or a type of their own, on the CPU; `run`
    takes them on any device and gives the outputs. `atol`: what its outputs may be off by, relative
    to the largest, in float32.
    """

    op: str
    variant: str
    make: Callable[[], tuple[list[Tensor], list[Tensor]]]
    run: Callable[..., tuple[Tensor, ...]]
    dtype: torch.dtype = F32
    atol: float = TOLERANCE[F32]

    @property
    def name(self) -> str:
        return f"{self.op} {self.variant}".strip()

    def inputs(self, device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
        """Always the same numbers: leaves that require a gradient, then the constants."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            leaves, constants = self.make()
        given = [_as(t, device, dtype).requires_grad_() for t in leaves]
        return [*given, *(_as(t, device, dtype) for t in constants)]

    def call(self, inputs: list[Tensor]) -> list[Tensor]:
        """The outputs, and the gradients of their weighted sum in every leaf."""
        outputs = self.run(*inputs)
        leaves = [t for t in inputs if t.requires_grad]
        wanted = [o for o in outputs if o.requires_grad]
        if not leaves or not wanted:
            return [*outputs]
        total = torch.stack([o.double().sum() * (i + 1) for i, o in enumerate(wanted)]).sum()
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        return [*outputs, *(g for g in grads if g is not None)]

    def check(self, backend: str, device: torch.device | str) -> None:
        """Raises AssertionError where `backend` on `device` gives other numbers."""
        with vf.backend("reference"):
            expected = [t.detach().double() for t in self.call(self.inputs(CPU, F64))]
        with vf.backend(backend):
            found = [t.detach().double().cpu() for t in self.call(self.inputs(device, self.dtype))]
        assert len(found) == len(expected), f"{self.name}: {len(found)} of {len(expected)} results"
        for number, (got, want) in enumerate(zip(found, expected, strict=True)):
            most = float(want.abs().max()) if want.numel() else 0.0
            bound = self.atol if self.dtype == F32 else TOLERANCE[self.dtype]
            torch.testing.assert_close(
                got,
                want,
                rtol=bound,
                atol=bound * most,
                msg=lambda text, n=number: f"{self.name}, result {n} by {backend}: {text}",
            )


def _as(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    if tensor.layout == torch.sparse_csr:
        return torch.sparse_csr_tensor(
            tensor.crow_indices().to(device),
            tensor.col_indices().to(device),
            tensor.values().to(device, dtype),
            tensor.shape,
            check_invariants=False,
        )
    return tensor.detach().clone().to(device, dtype if tensor.dtype == F64 else None)


def operators() -> list[Operator]:
    """Every public operator, likelihood and kernel at least once."""
    return [*_posterior(), *_likelihoods(), *_rows(), *_linear(), *_weights(), *_pairs()]


def randn(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=F64) for shape in shapes]


def leaves(*shapes: tuple[int, ...]) -> Callable[[], tuple[list[Tensor], list[Tensor]]]:
    return lambda: (randn(*shapes), [])


def _posterior() -> list[Operator]:
    grid, prior = (33, 127), (127,)
    state = lambda mu: torch.arange(2, device=mu.device)  # noqa: E731
    return [
        Operator("rsample", "", leaves(grid, grid), lambda m, v: (vf.rsample(m, v, seed=3),)),
        Operator(
            "rsample",
            "by a state, 3 samples",
            leaves(grid, grid),
            lambda m, v: (vf.rsample(m, v, seed=state(m), num_samples=3),),
        ),
        *(
            Operator(
                "gaussian_kl",
                how,
                leaves(grid, grid),
                lambda m, v, how=how: (vf.gaussian_kl(m, v, reduction=how),),
            )
            for how in ("batchmean", "none", "dim")
        ),
        Operator(
            "gaussian_kl",
            "with a prior",
            leaves(grid, grid, prior, prior),
            lambda m, v, pm, pv: (vf.gaussian_kl(m, v, prior_mu=pm, prior_scale=pv),),
        ),
        Operator("sample_kl", "", leaves(grid, grid), lambda m, v: vf.sample_kl(m, v, seed=3)),
        Operator(
            "sample_kl",
            "float64",
            leaves(grid, grid),
            lambda m, v: vf.sample_kl(m, v, seed=3, reduction="sum"),
            F64,
        ),
        Operator(
            "sample_kl",
            "with a prior",
            leaves(grid, grid, prior, prior),
            lambda m, v, pm, pv: vf.sample_kl(m, v, seed=3, prior_mu=pm, prior_scale=pv),
        ),
        Operator(
            "sample_kl",
            "estimated",
            leaves(grid, grid),
            lambda m, v: vf.sample_kl(m, v, num_samples=5, seed=3, estimator="monte_carlo"),
        ),
        Operator(
            "sample_kl",
            "estimated, with a prior",
            leaves(grid, grid, prior, prior),
            lambda m, v, pm, pv: vf.sample_kl(
                *(m, v),
                prior_mu=pm,
                prior_scale=pv,
                num_samples=5,
                seed=3,
                estimator="monte_carlo",
            ),
        ),
        Operator(
            "tril_sample_kl",
            "",
            lambda: ([*randn((9, 7)), _triangle(7, 9)], []),
            lambda m, tril: vf.tril_sample_kl(m, tril, seed=3),
        ),
        *(
            Operator(
                "random",
                kind,
                lambda: ([], randn((33, 127))),
                lambda x, kind=kind: (
                    getattr(vf.random, kind)(tuple(x.shape), state(x), dtype=x.dtype),
                ),
                F64,
            )
            for kind in ("normal", "uniform")
        ),
    ]


def _triangle(dims: int, batch: int) -> Tensor:
    return torch.randn(batch, dims, dims, dtype=F64).tril(-1) + torch.eye(dims, dtype=F64)


def _likelihoods() -> list[Operator]:
    shape = (9, 3, 41)
    made = [_elementwise(name, cls(), shape) for name, cls in likelihoods.registered().items()]
    pixels = lambda: (randn(shape), [torch.randint(0, 256, shape, dtype=torch.uint8)])  # noqa: E731
    masked = lambda: ([*randn(shape)], [torch.rand(shape, dtype=F64), torch.rand(shape) < 0.7])  # noqa: E731
    return [
        *made,
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
        Operator(
            "elbo_loss",
            "",
            lambda: (randn((9, 7), (9, 7), (9, 41)), [torch.rand(9, 41, dtype=F64)]),
            lambda m, v, p, x: (vf.elbo_loss(p, x, m, v, likelihood="bernoulli", beta=0.5).loss,),
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


def _rows() -> list[Operator]:
    classes, counts = (5, 17), (9, 1271)
    mixture = vf.DiscretizedLogisticMixture(3, 10)
    levels = lambda shape: torch.randint(0, 256, shape, dtype=torch.uint8)  # noqa: E731
    of = lambda model: lambda p, x: (vf.nll(p, x, model),)  # noqa: E731
    return [
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
            lambda: (randn(counts), [_counts(counts)]),
            of("multinomial"),
        ),
        Operator(
            "nll",
            "multinomial CSR",
            lambda: (randn(counts), [_counts(counts).to_sparse_csr()]),
            of("multinomial"),
        ),
        Operator(
            "nll",
            "discretized_logistic_mixture",
            lambda: (randn((3, mixture.size, 5, 7)), [levels((3, 3, 5, 7))]),
            of(mixture),
            atol=1e-3,
        ),
    ]


def _counts(shape: tuple[int, ...]) -> Tensor:
    return torch.poisson(torch.full(shape, 0.1, dtype=F64))


def _linear() -> list[Operator]:
    rows, hidden, items = 9, 33, 271
    shapes = (rows, hidden), (items, hidden), (items,)
    scaled = lambda: [0.1 * t for t in randn(*shapes)]  # noqa: E731
    multinomial = lambda h, w, b, x: (vf.linear_nll(h, w, b, x, "multinomial"),)  # noqa: E731
    # Two rows of logits at a time: chunks begin inside of the CSR matrix.
    poisson = lambda h, w, b, x: (vf.linear_nll(h, w, b, x, "poisson", memory=8 * items),)  # noqa: E731
    dense = lambda: (scaled(), [_counts((rows, items))])  # noqa: E731
    sparse = lambda: (scaled(), [_counts((rows, items)).to_sparse_csr()])  # noqa: E731
    return [
        Operator("linear_nll", "multinomial", dense, multinomial),
        Operator("linear_nll", "multinomial CSR", sparse, multinomial),
        Operator("linear_nll", "poisson", dense, poisson),
        Operator("linear_nll", "poisson CSR, in chunks", sparse, poisson),
    ]


def _weights() -> list[Operator]:
    samples, grid, prior = (7, 33, 50), (33, 50), (50,)
    x = lambda: torch.rand(33, 41, dtype=F64)  # noqa: E731
    weights = lambda p, z, m, v, x: vf.log_weights(p, x, z, m, v, likelihood="bernoulli")  # noqa: E731
    given = lambda: (randn((7, 33, 41), samples, grid, grid), [x()])  # noqa: E731
    constants = lambda *shapes: lambda: ([], randn(*shapes))  # noqa: E731
    to = lambda z: -0.5 * z.square().sum(-1)  # noqa: E731
    return [
        Operator("log_weights", "", given, lambda *t: (weights(*t),)),
        *(
            Operator(
                "importance_loss",
                bound,
                leaves((7, 33)),
                lambda w, bound=bound: (vf.importance_loss(w, bound=bound),),
            )
            for bound in ("iwae", "renyi")
        ),
        Operator("monte_carlo_kl", "", leaves(samples, grid, grid), _one(vf.monte_carlo_kl)),
        Operator(
            "monte_carlo_kl",
            "with a prior",
            leaves(samples, grid, grid, prior, prior),
            lambda z, m, v, *p: (vf.monte_carlo_kl(z, m, v, prior=p),),
        ),
        Operator(
            "log_marginal",
            "",
            constants(grid),
            lambda data: (vf.log_marginal(lambda x, k: x.sum(1).expand(k, -1), data, 6, 4),),
        ),
        Operator(
            "annealed_log_weights",
            "",
            constants((5, 3), (5, 3)),
            lambda m, v: (vf.annealed_log_weights(to, m, v, 4, steps=3, leapfrog=2, seed=3),),
            F64,
        ),
    ]


def _one(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *tensors: (function(*tensors),)


def _pairs() -> list[Operator]:
    """Of more points than a tile has, and of dimensions under and over a part's."""
    found = []
    for dims, dtype in ((9, F32), (70, F32), (40, F64)):
        points, others = (130, dims), (67, dims)
        label = f"{dims} dimensions" + (", float64" if dtype == F64 else "")
        for method in ("mss", "mws"):
            terms: Any = lambda *t, method=method: tuple(  # noqa: E731
                vf.tc_terms(*t, dataset_size=1000, method=method)
            )
            given = leaves(points, points, points)
            found.append(Operator("tc_terms", f"{method}, {label}", given, terms, dtype))
        for kernel in ("imq", "rbf"):
            distance: Any = lambda x, y, kernel=kernel: (vf.mmd(x, 0.5 * y + 0.5, kernel=kernel),)  # noqa: E731
            found.append(
                Operator("mmd", f"{kernel}, {label}", leaves(points, others), distance, dtype)
            )
        found.append(
            Operator(
                "mixture_log_prob",
                label,
                leaves(points, others, others, others[:1]),
                _one(vf.mixture_log_prob),
                dtype,
            )
        )
    far: Any = lambda z, m, v: (vf.mixture_log_prob(100 + z, m, v),)  # noqa: E731
    shapes = (33, 9), (17, 9), (17, 9)
    return [*found, Operator("mixture_log_prob", "of far points", leaves(*shapes), far)]
