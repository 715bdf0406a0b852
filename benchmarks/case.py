"""What is measured: a case makes inputs, and from them one call per implementation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import vaefast as vf

Shape = tuple[int, ...]
# From leaves and constants to the outputs, a tuple also where there is one.
Formula = Callable[..., tuple[Tensor, ...]]

FORWARD, BOTH, STEP = "forward", "forward+backward", "step"
EAGER, COMPILED, FUSED = "eager", "compiled", "vaefast-"
# Of whole steps: fused and compiled, without the replaced operations, and these by themselves.
TOGETHER, LIMIT, OPERATORS = "both", "limit", "operators"


class Call(NamedTuple):
    """One implementation, bound to its inputs, and the vaefast backend in force while it runs."""

    run: Callable[[], Any]
    backend: str


class Inputs(NamedTuple):
    """The tensors of an operator.

    Gradients are taken to `leaves`, from an `upstream` gradient for each output: None for a
    scalar loss, as in `loss.backward()`.
    """

    leaves: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    upstream: tuple[Tensor | None, ...]


class Case(Protocol):
    """What the harness asks of a case."""

    @property
    def op(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def passes(self) -> tuple[str, ...]: ...
    @property
    def targets(self) -> Mapping[str, float]:
        """The least speed-up over an implementation, or (`copy_`) the most of the floor's time."""

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold it."""

    @property
    def apart(self) -> bool:
        """Whether its memory on a CPU is measured in a process of its own."""

    def small(self) -> Case:
        """The same at a size that only shows that it runs."""

    def make(self, device: torch.device) -> Any:
        """Fresh inputs."""

    def implementations(self, device: torch.device) -> tuple[str, ...]: ...
    def call(self, implementation: str, what: str, inputs: Any, compiler: str) -> Call: ...
    def elements(self, inputs: Any) -> int: ...
    def moved(self, what: str, inputs: Any) -> int | None:
        """The least bytes that a pass reads and writes, or None where that says nothing."""

    def allowed(self, what: str, inputs: Any) -> int | None:
        """Bytes of outputs, gradients and what the method keeps: what a pass may allocate."""

    def check(self, inputs: Any, device: torch.device) -> None:
        """Raises AssertionError unless all implementations compute the same."""


@dataclass(frozen=True)
class OpCase:
    """An operator at one size.

    `formulas` are the alternatives in plain PyTorch; "eager" is there always, and is what
    torch.compile gets. `noisy`: the first output is a random sample. `rereads`: the backward pass
    needs the inputs again, since its gradient cannot be made in the forward pass. `alone`: too
    large for the alternatives. `kept`: bytes that the method needs beside outputs and gradients.
    """

    op: str
    shape: Shape
    inputs: Callable[[Shape, torch.device], Inputs]
    formulas: Mapping[str, Formula]
    fused: Formula
    variant: str = ""
    noisy: bool = False
    rereads: bool = False
    targets: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    small_shape: Shape | None = None
    alone: bool = False
    kept: Callable[[Inputs], int] = lambda _: 0

    passes = (FORWARD, BOTH)
    capturable = True
    apart = True

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.op, self.variant, "x".join(map(str, self.shape)))))

    def small(self) -> OpCase:
        shape = self.small_shape or tuple(min(size, 5) for size in self.shape)
        return replace(self, shape=shape, small_shape=shape, alone=False)

    def make(self, device: torch.device) -> Inputs:
        return self.inputs(self.shape, device)

    def implementations(self, device: torch.device) -> tuple[str, ...]:
        return (*(() if self.alone else (*self.formulas, COMPILED)), *fused_backends(device))

    def call(
        self, implementation: str, what: str, inputs: Inputs, compiler: str = "inductor"
    ) -> Call:
        if implementation.startswith(FUSED):
            return Call(bind(self.fused, what, inputs), implementation.removeprefix(FUSED))
        if implementation == COMPILED:
            formula = torch.compile(self.formulas[EAGER], backend=compiler)
        else:
            formula = self.formulas[implementation]
        return Call(bind(formula, what, inputs), "reference")

    def elements(self, inputs: Inputs) -> int:
        return inputs.leaves[0].numel()

    def moved(self, what: str, inputs: Inputs) -> int:
        total = nbytes(*inputs.leaves, *inputs.constants) + made(FORWARD, inputs)
        if what == BOTH:
            total += nbytes(*inputs.leaves)
            if self.rereads:
                total += nbytes(*inputs.leaves, *inputs.upstream)
        return total

    def allowed(self, what: str, inputs: Inputs) -> int:
        return made(what, inputs) + self.kept(inputs)

    def check(self, inputs: Inputs, device: torch.device) -> None:
        if self.alone:
            return
        results = {}
        for name in self.implementations(device):
            if name != COMPILED:
                run, backend = self.call(name, BOTH, inputs)
                with vf.backend(backend):
                    outputs, gradients = run()
                results[name] = outputs[1:] if self.noisy else (*outputs, *gradients)
        for name, values in results.items():
            for value, expected in zip(values, results[EAGER], strict=True):
                torch.testing.assert_close(
                    value.double(),
                    expected.double(),
                    rtol=1e-3,
                    atol=1e-5 * float(expected.detach().abs().max()),
                    msg=lambda text, name=name: f"{self.name}, {name} against eager: {text}",
                )


def made(what: str, inputs: Inputs) -> int:
    """Bytes of the outputs, and of the gradients where the pass makes them."""
    # An upstream gradient has its output's shape and dtype; a loss is a float32 scalar.
    losses = 4 * sum(t is None for t in inputs.upstream)
    return nbytes(*inputs.upstream) + losses + (nbytes(*inputs.leaves) if what == BOTH else 0)


def bind(formula: Formula, what: str, inputs: Inputs) -> Callable[[], Any]:
    """A call of `formula` without gradients, or with the gradients to every leaf."""
    leaves, constants, upstream = inputs

    def forward() -> Any:
        with torch.no_grad():
            return formula(*leaves, *constants)

    def both() -> Any:
        outputs = formula(*leaves, *constants)
        return outputs, torch.autograd.grad(outputs, leaves, upstream)

    return forward if what == FORWARD else both


def fused_backends(device: torch.device) -> tuple[str, ...]:
    """vaefast's backends to measure: the one asked for, else every kernel that serves."""
    asked = os.environ.get("VAEFAST_BACKEND", "auto")
    if asked != "auto":
        return (FUSED + asked,)
    return tuple(FUSED + name for name in vf.available_backends(device.type) if name != "reference")


def leaf(value: Tensor) -> Tensor:
    """`value` as a tensor that gradients are taken to."""
    return value.detach().requires_grad_()


def nbytes(*tensors: Tensor | None) -> int:
    return sum(_nbytes(t) for t in tensors if t is not None)


def _nbytes(tensor: Tensor) -> int:
    if tensor.layout == torch.sparse_csr:
        return sum(map(_nbytes, (tensor.crow_indices(), tensor.col_indices(), tensor.values())))
    return tensor.numel() * tensor.element_size()
