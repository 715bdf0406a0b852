"""What a small call on a GPU takes of the host, without a GPU: instructions that callgrind counts.

    python benchmarks/gpu_host.py build/emulated/_C.cpython-311-x86_64-linux-gnu.so

The module is of a build with VAEFAST_CUDA=emulate, whose launches do nothing here; CPU tensors pose
as a GPU's. Each call is counted by the plan that was made before ("found"), without plans ("long"),
and as what torch takes of it whoever computes: an autograd function of the same operands and
results that computes nothing, differentiated the same way ("floor").
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import instructions
import torch
from torch import Tensor


def pose(module: str) -> None:
    """Puts the emulated core in the place of the installed one, and CPU tensors in that of a
    GPU's: the device of all is -1, the current stream 1."""
    loader = importlib.machinery.ExtensionFileLoader("vaefast._C", module)
    spec = importlib.util.spec_from_loader("vaefast._C", loader)
    assert spec is not None
    sys.modules["vaefast._C"] = importlib.util.module_from_spec(spec)
    loader.exec_module(sys.modules["vaefast._C"])
    base: Any = torch._C.TensorBase
    # One descriptor for the other, so that none takes longer.
    torch.Tensor.is_cpu, torch.Tensor.is_cuda = base.is_cuda, base.is_cpu  # type: ignore[misc]
    from vaefast.backends.native import _place, nll, sample_kl

    _place.raw_stream = abs  # type: ignore[assignment]
    for plans in (nll, sample_kl):
        plans.is_on_cpu = lambda device: False


class Nothing(torch.autograd.Function):
    """Of some operands; results of these shapes."""

    @staticmethod
    def forward(ctx: Any, shapes: tuple[tuple[int, ...], ...], *given: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given)
        return tuple([given[0].new_empty(shape) for shape in shapes])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return None, *[torch.empty_like(t) for t in ctx.saved_tensors]


def calls() -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Each call, and its floor."""
    import vaefast as vf
    from vaefast._torch import apply_of

    nothing = apply_of(Nothing)
    mu, logvar = (torch.randn(128, 20).requires_grad_() for _ in range(2))
    logits, x = torch.randn(128, 784).requires_grad_(), torch.rand(128, 784)
    kl = torch.rand(128).requires_grad_()
    upstream = torch.randn(128, 20), torch.randn(128)

    def sample_kl(of: Callable[[], Any]) -> None:
        torch.autograd.grad(of(), (mu, logvar), upstream)

    def elbo_loss(of: Callable[[], Any]) -> None:
        torch.autograd.grad(of(), (logits, kl))

    return {
        "sample_kl": (
            lambda: sample_kl(lambda: vf.sample_kl(mu, logvar)),
            lambda: sample_kl(lambda: nothing(((128, 20), (128,)), mu, logvar)),
        ),
        "elbo_loss": (
            lambda: elbo_loss(lambda: vf.elbo_loss(logits, x, kl=kl, likelihood="bernoulli").loss),
            lambda: elbo_loss(lambda: nothing(((),), logits, kl)[0]),
        ),
    }


def measure(module: str, folder: Path) -> None:
    """Under callgrind."""
    torch.set_num_threads(1)
    pose(module)
    import vaefast as vf
    from vaefast.ops import _plans

    counter = instructions.Counter.of(folder)
    honest = _plans.find
    with vf.backend("native"):
        for name, (call, floor) in calls().items():
            counter.count(f"{name} found", call, 4)
            _plans.find = lambda *_: (None, None)
            counter.count(f"{name} long", call, 4)
            _plans.find = honest
            counter.count(f"{name} floor", floor, 4)


def main(module: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, module, name]
        environment = {**os.environ, "VAEFAST_EMULATED_ORDER": "none", "PYTHONHASHSEED": "0"}
        subprocess.run(instructions.command(command, folder), check=True, env=environment)
        counts = instructions.counted(folder)
    for call in sorted({name.split()[0] for name in counts}):
        found, long, floor = (counts[f"{call} {way}"] for way in ("found", "long", "floor"))
        ours = (found - floor) / (long - floor)
        print(
            f"{call}: {found / 1e3:.0f} thousand instructions by a plan, {long / 1e3:.0f} without, "
            f"{floor / 1e3:.0f} torch's own: {found / long:.2f} of all, {ours:.2f} of the rest"
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main(sys.argv[1])
