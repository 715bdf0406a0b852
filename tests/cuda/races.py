"""Every kernel of a GPU that shares memory between threads, emulated in several orders of them:
`python races.py <module _C>`, of a build with VAEFAST_CUDA=emulate and, so that it looks at every
access, VAEFAST_EMULATED_ACCESSES=ON.

A race that the build sees is a RuntimeError; in another order of the threads, other bits are an
AssertionError. The last line says how many calls were made.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import torch
from emulated import emulated, install, load
from torch import Tensor

ORDERS = ("reversed", "shuffled:1", "shuffled:2", "interleaved:3")
# The numbers that a call takes, named by what shares memory there.
Call = Callable[..., object]


def calls() -> Iterator[tuple[str, Call, list[Tensor]]]:
    """What, the call, and its leaves."""
    import vaefast as vf

    make = torch.Generator().manual_seed(1)

    def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [torch.randn(s, generator=make).to(dtype).requires_grad_() for s in shapes]

    # launch.cuh: a block's sum, in several units of a block; and a warp's.
    for how in ("batchmean", "sample", "dim"):
        yield (
            f"sums of a block, {how}",
            lambda m, s, how=how: vf.sample_kl(m, s, seed=1, reduction=how),
            leaves((3, 4099), (3, 4099)),
        )
    yield "sums of a warp", lambda m, s: vf.sample_kl(m, s, seed=1), leaves((9, 40), (9, 40))
    prior = [(5, 40), (5, 40), (40,), (40,)]
    yield (
        "a learned prior",
        lambda m, s, a, b: vf.sample_kl(m, s, prior_mu=a, prior_scale=b, seed=1),
        leaves(*prior),
    )
    yield (
        "a learned scalar",
        lambda m, s: vf.nll(m, torch.ones_like(m), vf.Gaussian(s.exp().mean())),
        leaves((3, 2051), (1,)),
    )
    for classes in (10, 1271, 9001):
        target = torch.arange(3) % classes
        yield (
            f"classes side by side, {classes}",
            lambda p, t=target: vf.nll(p, t, "categorical"),
            leaves((3, classes)),
        )
        counts = (torch.rand(3, classes, generator=make) < 0.3).float()
        for name, x in (("dense", counts), ("CSR", counts.to_sparse_csr())):
            yield (
                f"{name} counts, {classes}",
                lambda p, x=x: vf.nll(p, x, "multinomial"),
                leaves((3, classes)),
            )
    wide = (torch.rand(2, 9001, generator=make) < 0.1).float()
    for name, x, likelihood in (
        ("classes", torch.tensor([7, 9000]), "categorical"),
        ("dense counts", wide, "multinomial"),
        ("CSR counts", wide.to_sparse_csr(), "multinomial"),
    ):
        yield (
            f"{name} of a row in shared memory",
            lambda p, x=x, m=likelihood: vf.nll(p, x, m),
            leaves((2, 9001), dtype=torch.bfloat16),
        )
    # Fewer rows than blocks: rows in pieces, brought together by a launch of their own.
    yield (
        "a row in pieces",
        lambda p: vf.nll(p, torch.tensor([7]), "categorical"),
        leaves((1, 20_001)),
    )
    for classes in (30, 300):
        target = torch.arange(2 * 41).view(2, 41) % classes
        yield (
            f"positions side by side, {classes}",
            lambda p, t=target: vf.nll(p, t, "categorical"),
            leaves((2, classes, 41)),
        )
    mixture = vf.DiscretizedLogisticMixture(3, 10)
    pixels = torch.randint(0, 256, (2, 3, 5, 3), dtype=torch.uint8, generator=make)
    yield (
        "a mixture of logistics",
        lambda p: vf.nll(p, pixels, mixture),
        leaves((2, mixture.size, 5, 3)),
    )
    yield (
        "monte_carlo_kl",
        lambda z, m, s, a, b: vf.monte_carlo_kl(z, m, s, prior=(a, b)),
        leaves((5, 3, 50), (3, 50), (3, 50), (50,), (50,)),
    )
    yield (
        "sample_monte_carlo_kl",
        lambda m, s: vf.sample_kl(m, s, seed=1, num_samples=5, estimator="monte_carlo"),
        leaves((3, 1100), (3, 1100)),
    )
    for dtype in (torch.float32, torch.float64):
        for dims in (9, 70):
            shapes = [(66, dims), (70, dims)]
            name = f"{dims} dimensions, {dtype}"
            for kernel in ("imq", "rbf"):
                yield (
                    f"mmd {kernel}, {name}",
                    lambda x, y, k=kernel: vf.mmd(x, y, kernel=k),
                    leaves(*shapes, dtype=dtype),
                )
            if dtype == torch.float32:
                # Too narrow for products on the tensor cores, as all of float64 is done.
                yield (
                    f"mmd by differences, {name}",
                    lambda x, y: vf.mmd(x, y, scales=(1e-3,)),
                    leaves(*shapes, dtype=dtype),
                )
                yield (
                    f"mmd with one gradient, {name}",
                    lambda x, y: vf.mmd(x, y.detach()),
                    leaves(*shapes, dtype=dtype),
                )
            yield (
                f"mixture_log_prob, {name}",
                lambda z, m, s, w: vf.mixture_log_prob(z, m, s, w),
                leaves((70, dims), (130, dims), (130, dims), (130,), dtype=dtype),
            )
            yield (
                f"tc_terms, {name}",
                lambda z, m, s: tuple(vf.tc_terms(z, m, s, dataset_size=1000)),
                leaves(*[(70, dims)] * 3, dtype=dtype),
            )


def results(call: Call, leaves: list[Tensor]) -> list[Tensor]:
    """A call's values and gradients."""
    found = call(*leaves)
    values = found if isinstance(found, tuple) else (found,)
    total = sum((i + 1.5) * v.sum() for i, v in enumerate(values))
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    return [t.detach() for t in (*values, *grads) if t is not None]


def main(module: str, only: str = "") -> None:
    install(emulated(load(module)))
    import vaefast as vf

    count = 0
    for name, call, leaves in calls():
        if only not in name:
            continue
        with vf.backend("native"):
            os.environ["VAEFAST_EMULATED_ORDER"] = "forward"
            want = results(call, leaves)
            for order in ORDERS:
                os.environ["VAEFAST_EMULATED_ORDER"] = order
                try:
                    got = results(call, leaves)
                except RuntimeError as error:
                    raise SystemExit(f"{name}, {order}: {error}") from None
                for a, b in zip(want, got, strict=True):
                    if not torch.equal(a.nan_to_num(), b.nan_to_num()):
                        raise SystemExit(f"{name}, {order}: other bits than in the order forward")
                count += 1
    print(f"{count} calls, no race")


if __name__ == "__main__":
    main(*sys.argv[1:])
