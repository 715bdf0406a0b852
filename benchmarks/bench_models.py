"""Whole training steps: what the fused operations make of them, and what they could at most.

`limit` is the same step with the replaced operations left out: what they give is handed over, and
what their gradients are too. `operators` is those operations alone, forward and backward, fused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import vaefast as vf

from . import models, models_deep
from .case import (
    COMPILED,
    EAGER,
    FUSED,
    LIMIT,
    OPERATORS,
    STEP,
    TOGETHER,
    Call,
    fused_backends,
    nbytes,
)
from .models import Model

Handed = tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]


@dataclass
class StepInputs:
    """A batch, the weights that all implementations start from, and the calls of the replaced
    operations in one step: name and operands."""

    data: tuple[Tensor, ...]
    state: dict[str, Any]
    calls: list[tuple[str, tuple[Tensor, ...]]]


@dataclass(frozen=True)
class ModelCase:
    """One training step: forward, backward, Adam. Every implementation has its own model."""

    label: str
    kind: Callable[..., Model]
    sizes: Mapping[str, int]
    small_sizes: Mapping[str, int]
    targets: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    op = "step"
    passes = (STEP,)
    # Adam keeps its step count on the host.
    capturable = False
    # A process of its own would compile every step again.
    apart = False

    @property
    def name(self) -> str:
        return f"training step {self.label}"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes.values())

    def small(self) -> ModelCase:
        return replace(self, sizes=self.small_sizes)

    def make(self, device: torch.device) -> StepInputs:
        model = self.kind(**self.sizes).to(device)
        inputs = StepInputs(model.data(device), model.state_dict(), [])
        model = self._model(inputs)

        def recorded(name: str) -> Callable[..., Any]:
            def call(*operands: Tensor) -> Any:
                inputs.calls.append((name, operands))
                return model.replaced[name].eager(*operands)

            return call

        model.ops = {name: recorded(name) for name in model.replaced}
        model(*inputs.data)
        inputs.calls = [(name, _leaves(operands)) for name, operands in inputs.calls]
        return inputs

    def implementations(self, device: torch.device) -> tuple[str, ...]:
        fused = fused_backends(device)
        return (EAGER, COMPILED, *fused, *((TOGETHER,) if fused else ()), LIMIT, OPERATORS)

    def call(
        self, implementation: str, what: str, inputs: StepInputs, compiler: str = "inductor"
    ) -> Call:
        model = self._model(inputs)
        device = inputs.data[0].device
        backend = next((n.removeprefix(FUSED) for n in fused_backends(device)), "reference")
        if implementation.startswith(FUSED):
            backend = implementation.removeprefix(FUSED)
        if implementation == OPERATORS:
            return Call(_alone(model, inputs), backend)
        if implementation.startswith(FUSED) or implementation == TOGETHER:
            model.ops = {name: pair.fused for name, pair in model.replaced.items()}
        elif implementation == LIMIT:
            model.ops = {name: _handed_over(pair.eager) for name, pair in model.replaced.items()}
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
        forward: Callable[..., Tensor] = model
        if implementation in (COMPILED, TOGETHER):
            forward = torch.compile(model, backend=compiler)
        data = inputs.data

        def step() -> Tensor:
            loss = forward(*data)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return Call(step, backend)

    def elements(self, inputs: StepInputs) -> int:
        return inputs.data[0].numel()

    def moved(self, what: str, inputs: StepInputs) -> None:
        return None

    def allowed(self, what: str, inputs: StepInputs) -> int:
        """Above the limit's: outputs and gradients of the replaced operations."""
        model = self._model(inputs)
        total = 0
        for name, operands in inputs.calls:
            outputs, gradients = _results(model.replaced[name].eager, operands)
            total += nbytes(*outputs, *gradients)
        return total

    def check(self, inputs: StepInputs, device: torch.device) -> None:
        """Every operation's values and gradients, on the operands of one step; a sample's own are
        random."""
        model = self._model(inputs)
        for name, operands in inputs.calls:
            pair = model.replaced[name]
            # Some formulas are right in float64 alone: the mixture's takes differences of sigmoids.
            wide = tuple(t.detach().double().requires_grad_(t.requires_grad) for t in operands)
            expected = _compared(pair, pair.eager, wide)
            for served in fused_backends(device):
                with vf.backend(served.removeprefix(FUSED)):
                    found = _compared(pair, pair.fused, operands)
                for value, want in zip(found, expected, strict=True):
                    torch.testing.assert_close(
                        value.double(),
                        want,
                        rtol=1e-3,
                        atol=1e-5 * float(want.detach().abs().max()),
                        msg=lambda text, name=name: f"{self.name}, {name}: {text}",
                    )

    def _model(self, inputs: StepInputs) -> Model:
        model = self.kind(**self.sizes).to(inputs.data[0].device)
        model.load_state_dict(inputs.state)
        return model


def _leaves(operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in operands)


def _tuple(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _results(operation: Callable[..., Any], operands: tuple[Tensor, ...]) -> Handed:
    """An operation's outputs, and the gradients to its operands where they ask for one."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(t.requires_grad) for t in operands]
        outputs = _tuple(operation(*leaves))
    wanted = [t for t in leaves if t.requires_grad]
    upstream = [torch.ones_like(o) for o in outputs]
    found = iter(torch.autograd.grad(outputs, wanted, upstream))
    gradients = tuple(next(found) if t.requires_grad else None for t in leaves)
    return tuple(o.detach() for o in outputs), gradients


def _compared(
    pair: models.Replaced, operation: Callable[..., Any], operands: tuple[Tensor, ...]
) -> list[Tensor]:
    """What two forms of an operation have to agree in."""
    torch.manual_seed(0)
    if not pair.noisy:
        outputs, gradients = _results(operation, operands)
        return [*outputs, *(g for g in gradients if g is not None)]
    # The rest of the outputs, and their gradients: none passes through the sample.
    leaves = [t.detach().requires_grad_(t.requires_grad) for t in operands]
    _, *outputs = _tuple(operation(*leaves))
    if not outputs or outputs[0].dim() > 1:
        # A sample alone, or an estimate at it.
        return []
    gradients = torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs])
    return [*outputs, *gradients]


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, handed: Handed, *operands: Tensor) -> Any:
        ctx.gradients = handed[1]
        outputs = tuple(o.detach() for o in handed[0])
        return outputs if len(outputs) > 1 else outputs[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        # Autograd takes over what nobody else holds; it would copy a weight's gradient otherwise.
        return None, *(None if g is None else g.detach() for g in ctx.gradients)


def _handed_over(operation: Callable[..., Any]) -> Callable[..., Any]:
    """An operation that is done once for operands of the same shapes, its gradients too."""
    done: dict[tuple[torch.Size, ...], Handed] = {}

    def call(*operands: Tensor) -> Any:
        key = tuple(t.shape for t in operands)
        if key not in done:
            done[key] = _results(operation, operands)
        return _Given.apply(done[key], *operands)

    return call


def _alone(model: Model, inputs: StepInputs) -> Callable[[], Any]:
    """The replaced operations of one step, fused, forward and backward."""
    work = []
    for name, operands in inputs.calls:
        upstream = [torch.ones_like(o) for o in _results(model.replaced[name].eager, operands)[0]]
        work.append((model.replaced[name].fused, operands, upstream))

    def run() -> None:
        for operation, operands, upstream in work:
            outputs = _tuple(operation(*operands))
            torch.autograd.grad(outputs, [t for t in operands if t.requires_grad], upstream)

    return run


def case(
    label: str, kind: Callable[..., Model], small: Mapping[str, int], **sizes: int
) -> ModelCase:
    return ModelCase(label, kind, MappingProxyType(sizes), MappingProxyType(dict(small)))


def mlp() -> ModelCase:
    tiny = {"batch": 5, "data": 16, "hidden": 8, "latent": 2}
    sizes = {"batch": 128, "data": 784, "hidden": 400, "latent": 20}
    return case("MLP 784-400-20 batch 128", models.MLP, tiny, **sizes)


def cases() -> list[ModelCase]:
    tiny = {"batch": 5, "data": 16, "hidden": 8, "latent": 2}
    digits = {"data": 784, "hidden": 400}
    return [
        case(
            "scVI 128 x 4000 genes",
            models.ScVI,
            {"batch": 5, "genes": 12, "hidden": 8, "latent": 2},
            batch=128,
            genes=4000,
            hidden=128,
            latent=10,
        ),
        case(
            "Mult-VAE 50000 items",
            models.MultVAE,
            {"batch": 5, "items": 30, "hidden": 8, "latent": 2},
            batch=128,
            items=50_000,
            hidden=200,
            latent=100,
        ),
        case("beta-TCVAE batch 1024", models.BetaTC, tiny, batch=1024, latent=10, **digits),
        case("InfoVAE batch 256", models.InfoVAE, tiny, batch=256, latent=32, **digits),
        case(
            "VampPrior of 500",
            models.VampPrior,
            {**tiny, "components": 4},
            batch=256,
            data=784,
            hidden=300,
            latent=40,
            components=500,
        ),
        case(
            "IWAE K = 50",
            models.IWAE,
            {**tiny, "samples": 3},
            batch=64,
            data=784,
            hidden=200,
            latent=50,
            samples=50,
        ),
        case(
            "MIWAE M = 8, K = 8",
            models.IWAE,
            {**tiny, "samples": 4, "groups": 2},
            batch=64,
            data=784,
            hidden=200,
            latent=50,
            samples=64,
            groups=8,
        ),
        case(
            "VDVAE head 32x32, 10 logistics",
            models_deep.VDVAE,
            {"batch": 2, "size": 8, "width": 8, "latent": 2},
            batch=16,
            size=32,
            width=64,
            latent=16,
        ),
        case(
            "Dreamer 4 steps batch 100",
            models_deep.Dreamer,
            {"batch": 3, "steps": 2, "data": 6, "hidden": 8, "latent": 2},
            batch=100,
            steps=4,
            data=1024,
            hidden=200,
            latent=30,
        ),
        case(
            "AutoencoderKL 64x64 batch 4",
            models_deep.AutoencoderKL,
            {"batch": 2, "size": 8, "width": 8, "latent": 2},
            batch=4,
            size=64,
            width=64,
            latent=4,
        ),
        mlp(),
    ]


def test_models(measure: Callable[[], None]) -> None:
    measure()
