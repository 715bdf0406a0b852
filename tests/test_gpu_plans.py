"""Small calls on a GPU: a plan that is found gives the bits of the slow path, on whichever device
and stream, with half of its Python. CPU tensors pose as a GPU's (tests/posing.py)."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from posing import Posing, pose
from test_no_waits import FUNCTIONS, METHODS
from torch import Tensor

import vaefast as vf
from vaefast.ops import _plans

pytestmark = pytest.mark.skipif(
    "native" not in vf.available_backends(), reason="needs the compiled core"
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Posing]:
    with vf.backend("native"):
        yield pose(monkeypatch)


def leaves(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(2)]


def step(mu: Tensor, logvar: Tensor, mean: Tensor, log_std: Tensor, x: Tensor, **settings: Any):
    """A loss of both operators, and its parts."""
    z, kl = vf.sample_kl(mu, logvar)
    model = settings.pop("likelihood", "bernoulli")
    params = (mean, log_std) if model == "gaussian" else mean
    if model == "learned":
        model = vf.Gaussian(log_std.mean().exp())
    loss = vf.elbo_loss(params, x, kl=kl, likelihood=model, **settings).loss
    return z, kl, loss


CALLS: dict[str, Callable[..., Any]] = {
    "rsample": lambda mu, logvar, *_: (vf.rsample(mu, logvar),),
    "rsample, seed": lambda mu, logvar, *_: (vf.rsample(mu, logvar, seed=3),),
    "sample_kl": lambda mu, logvar, *_: vf.sample_kl(mu, logvar),
    "sample_kl, mean": lambda mu, logvar, *_: vf.sample_kl(mu, logvar, reduction="batchmean"),
    "sample_kl, sum": lambda mu, logvar, *_: vf.sample_kl(mu, logvar, reduction="sum", offset=4),
    "gaussian_kl": lambda mu, logvar, *_: (vf.gaussian_kl(mu, logvar),),
    "nll": lambda mu, logvar, mean, log_std, x: (vf.nll(mean, x, "bernoulli"),),
    "nll, sample": lambda mu, logvar, mean, log_std, x: (
        vf.nll(mean, x, "bernoulli", reduction="sample"),
    ),
    "nll of two": lambda mu, logvar, mean, log_std, x: (vf.nll((mean, log_std), x, "gaussian"),),
    "elbo_loss": step,
    "elbo_loss, beta": lambda *given: step(*given, beta=0.3),
    "elbo_loss of two": lambda *given: step(*given, likelihood="gaussian"),
    "elbo_loss, learned scalar": lambda *given: step(*given, likelihood="learned"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(7, 13), (4, 3, 5)], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_plan_that_is_found_gives_the_bits_of_the_long_way(name, shape, dtype, gpu, monkeypatch):
    torch.manual_seed(1)
    tensors = [*leaves(*shape, dtype=dtype), *leaves(*shape, dtype=dtype)]
    x = torch.rand(shape)
    for upstream in (torch.ones_like, torch.randn_like):
        results = []
        for way in ("long", "kept", "found"):
            if way == "long":
                # As if there were no plans.
                monkeypatch.setattr(_plans, "find", lambda *_: (None, None))
            else:
                monkeypatch.setattr(_plans, "find", FIND)
            torch.manual_seed(3)
            before = len(_plans.kept)
            outputs = CALLS[name](*tensors, x)
            if way == "found":
                assert before and len(_plans.kept) == before, "no plan was found"
            torch.manual_seed(4)
            used = [t for t in tensors if _reaches(outputs, t)]
            grads = torch.autograd.grad(outputs, used, [upstream(o) for o in outputs])
            after = torch.rand(())
            results.append([*outputs, *grads, after])
        for other in results[1:]:
            for long, quick in zip(results[0], other, strict=True):
                assert torch.equal(long, quick) and long.stride() == quick.stride()


FIND = _plans.find


def _reaches(outputs: Any, leaf: Tensor) -> bool:
    (found,) = torch.autograd.grad(
        [o.sum() for o in outputs], leaf, allow_unused=True, retain_graph=True
    )
    return found is not None


def test_the_device_and_the_current_stream_are_the_calls_own(gpu):
    """A plan that one device and stream made serves another stream, and not another device."""
    mu, logvar = leaves(7, 13)

    def call():
        z, kl = vf.sample_kl(mu, logvar)
        torch.autograd.grad((z.sum() + kl.sum()), (mu, logvar))
        torch.autograd.grad(vf.nll((mu, logvar), torch.ones(7, 13), "gaussian"), (mu, logvar))

    for device, stream in ((0, 7), (0, 9), (1, 9), (1, 7), (0, 7)):
        gpu.device, gpu.stream = device, stream
        kept = len(_plans.kept)
        gpu.launches.clear()
        call()
        want = ["sample_kl", "sample_kl_backward", "nll", "scale"]
        assert gpu.launches == [(name, device, 100 * device + stream) for name in want]
        # One for each operator on each device.
        new = (device, stream) in ((0, 7), (1, 9)) and kept < 2 * (device + 1)
        assert len(_plans.kept) - kept == (2 if new else 0)


def test_one_launch_scales_all_gradients_and_none_is_for_a_kl(gpu):
    mu, logvar = leaves(5, 6)
    x = torch.ones(5, 6)
    for _ in range(2):
        gpu.launches.clear()
        torch.autograd.grad(vf.nll((mu, logvar), x, "gaussian"), (mu, logvar))
        assert gpu.names() == ["nll", "scale"]
        gpu.launches.clear()
        z, kl = vf.sample_kl(mu, logvar)
        torch.autograd.grad(z.sum() * 2 + kl.sum(), (mu, logvar))
        assert gpu.names() == ["sample_kl", "sample_kl_backward"]


def test_a_drawn_state_is_one_launch_of_torchs(gpu):
    """Its second number is the kernel's to write; the slow path has a launch for it."""
    mu, logvar = (t.detach() for t in leaves(5, 6))
    seen = []
    for _ in range(2):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            vf.sample_kl(mu, logvar)
        seen.append([e.name for e in profile.events() if e.name.startswith("aten::")])
    writes = ["aten::zero_", "aten::fill_", "aten::random_"]
    longer = [name for name in seen[0] if name in writes]
    assert longer[0] == "aten::random_" and len(longer) > 1
    # A workspace of a test's own is filled under emulation.
    torchs = [name for name in seen[1] if name in writes]
    assert torchs[0] == "aten::random_" and "aten::zero_" not in torchs


def test_a_plan_that_is_found_waits_for_nothing(gpu, monkeypatch):
    """The dispatch mode of test_no_waits.py would have these calls go the slow path."""
    mu, logvar = leaves(5, 6)
    x = torch.ones(5, 6)
    given = (mu, logvar, mu, logvar, x)
    calls = [call for name, call in CALLS.items() if "seed" not in name]

    def run(call):
        outputs = call(*given)
        torch.autograd.grad(outputs, mu, [torch.ones_like(o) for o in outputs], allow_unused=True)

    for call in calls:
        run(call)
        run(call)
    kept = len(_plans.kept)

    def waits(*_: Any, **__: Any) -> None:
        raise AssertionError("it would wait for the device")

    for name in (*METHODS, "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(Tensor, name, waits, raising=False)
    for name in FUNCTIONS:
        monkeypatch.setattr(torch, name, waits, raising=False)
    for call in calls:
        run(call)
    assert len(_plans.kept) == kept
    with pytest.raises(AssertionError, match="would wait"):
        float(mu.sum())
    # What the CPU's way asks of the upstream gradient is seen.
    monkeypatch.delattr(Tensor, "is_cpu")
    with pytest.raises(AssertionError, match="would wait"):
        run(CALLS["nll"])


def test_a_plan_holds_no_tensor(gpu):
    mu, logvar = leaves(5, 6)
    torch.autograd.grad(step(mu, logvar, mu, logvar, torch.ones(5, 6))[2], mu)
    assert len(_plans.kept) == 2
    seen: set[int] = set()
    todo: list[Any] = [*_plans.kept.values()]
    while todo:
        value = todo.pop()
        assert not isinstance(value, Tensor)
        if id(value) in seen or not (isinstance(value, (tuple, list, dict)) or _own(value)):
            continue
        seen.add(id(value))
        todo += gc.get_referents(value)
    assert len(seen) > 20


def _own(value: Any) -> bool:
    return "Plan" in type(value).__name__ or "lambda" in getattr(value, "__name__", "")


def test_another_devices_kl_goes_the_slow_path(gpu, monkeypatch):
    """Autograd would be handed a gradient on the wrong device."""
    logits, x = torch.zeros(5, 6, requires_grad=True), torch.ones(5, 6)
    kl = torch.rand(5, requires_grad=True)
    call = lambda: vf.elbo_loss(logits, x, kl=kl, likelihood="bernoulli").loss.grad_fn.name()  # noqa: E731
    call()
    assert "ElboLoss" in call()
    monkeypatch.setattr(Tensor, "get_device", lambda t: int(t is kl))
    call()
    assert "ElboLoss" not in call()


def bytecodes(call: Callable[[], object]) -> int:
    """How many of this library's the interpreter runs: what a small call's host time goes to."""
    count = 0
    package = str(Path(vf.__file__).parent)

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(package):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def both_passes(name: str) -> Callable[[], object]:
    mu, logvar = leaves(128, 20)
    logits, x = torch.randn(128, 20, requires_grad=True), torch.ones(128, 20)
    kl = torch.rand(128, requires_grad=True)

    def sample_kl():
        z, kl = vf.sample_kl(mu, logvar)
        torch.autograd.grad((z, kl), (mu, logvar), (z.detach(), kl.detach()))

    def elbo_loss():
        loss = vf.elbo_loss(logits, x, kl=kl, likelihood="bernoulli").loss
        torch.autograd.grad(loss, (logits, kl))

    return {"sample_kl": sample_kl, "elbo_loss": elbo_loss}[name]


@pytest.mark.parametrize("name", ["sample_kl", "elbo_loss"])
def test_half_of_the_interpreters_work_is_left(name, gpu, monkeypatch):
    # What stands in for the machine adds nothing.
    monkeypatch.delattr(Tensor, "get_device")
    call = both_passes(name)
    for _ in range(2):
        call()
    found = bytecodes(call)
    monkeypatch.setattr(_plans, "find", lambda *_: (None, None))
    call()
    long = bytecodes(call)
    assert found <= 0.5 * long, (found, long)
