"""A small call of an operator, which is compared with the plain PyTorch backend in float64 on the
CPU: what a new machine runs first, and what is looked at for waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import vaefast as vf

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


def randn(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=F64) for shape in shapes]


def leaves(*shapes: tuple[int, ...]) -> Callable[[], tuple[list[Tensor], list[Tensor]]]:
    return lambda: (randn(*shapes), [])


def random_counts(shape: tuple[int, ...]) -> Tensor:
    return torch.poisson(torch.full(shape, 0.1, dtype=F64))


def one(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *tensors: (function(*tensors),)


def state(like: Tensor) -> Tensor:
    """Of noise, where `like` is."""
    return torch.arange(2, device=like.device)


def pairs() -> Iterator[tuple[tuple[int, int], tuple[int, int], str, torch.dtype]]:
    """Of more points than a tile has, and of dimensions under and over a part's: the shapes of
    points and of the others, what they are called, and their type."""
    for dims, dtype in ((9, F32), (70, F32), (40, F64)):
        label = f"{dims} dimensions" + (", float64" if dtype == F64 else "")
        yield (130, dims), (67, dims), label, dtype
