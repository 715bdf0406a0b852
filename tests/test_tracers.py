"""Every operator and likelihood under every tracer and transform: jit.trace, export, vmap, grad,
jvp, compile, fake and meta tensors, functionalisation, threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import tracer_cases
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from traced_call import TracedCall
from tracer_cases import ALL, INTEGERS, OPERATORS, SETTINGS, loss, outputs

import vaefast as vf
from vaefast import likelihoods

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# What stands for its kind in the tests that take seconds.
CORE = (
    "rsample", "gaussian_kl", "sample_kl", "sample_kl, Monte Carlo", "nll, bernoulli",
    "nll, gaussian", "nll, categorical", "linear_nll", "elbo_loss", "log_weights",
    "importance_loss, renyi", "monte_carlo_kl", "tc_terms", "mixture_log_prob", "mmd",
    "tril_sample_kl",
)  # fmt: skip


def marked(names: Any, core: tuple[str, ...] | None = None) -> list[Any]:
    """The calls as parameters, those outside `core` slow."""
    found = []
    for name in names:
        marks = []
        if core is not None and name not in core:
            marks.append(pytest.mark.slow)
        found.append(pytest.param(name, marks=marks))
    return found


def assert_same(got: Any, want: Any) -> None:
    for a, b in zip(outputs(got), outputs(want), strict=True):
        # One may go by another backend: what is summed cancels, as beta-TCVAE's terms.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_every_operator_and_likelihood_has_a_call() -> None:
    public = tracer_cases.public_operators()
    assert {name.split(",")[0] for name in ALL} == public - tracer_cases.LOOPS
    assert {name.split()[0] for name in SETTINGS} == public - tracer_cases.LOOPS
    covered = {name.removeprefix("nll, ") for name in ALL}
    for name in (*likelihoods.registered(), *likelihoods.registered_rows()):
        assert any(c == name or c.startswith((f"{name}-", f"{name}_")) for c in covered), name


@pytest.mark.parametrize("name", marked(ALL))
def test_jit_trace(name: str) -> None:
    """Called with other values, what was traced gives what eager gives; or tracing is refused."""
    case = ALL[name]
    tensors, others = case.tensors(6), case.tensors(6)
    try:
        traced = torch.jit.trace(case.call, tensors, check_trace=False)
    except RuntimeError as error:
        # Not some error of the tracer's deep inside.
        assert "trace" in str(error)
        return
    for _ in range(2):
        assert_same(traced(*others), case.call(*others))


class _Module(nn.Module):
    def __init__(self, case: TracedCall) -> None:
        super().__init__()
        self.case = case

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return outputs(self.case.call(*tensors))


@pytest.mark.parametrize("name", marked(ALL, CORE))
def test_export_with_a_dynamic_batch(name: str) -> None:
    case = ALL[name]
    batch = torch.export.Dim("batch", min=2, max=1000)
    shapes = tuple({} if d is None else {d: batch} for d in case.batch)
    program = torch.export.export(
        _Module(case), case.tensors(6), dynamic_shapes={"tensors": shapes}
    )
    for size in (6, 4, 17):
        tensors = case.tensors(size)
        assert_same(program.module()(*tensors), outputs(case.call(*tensors)))


def _gradients(case: TracedCall, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    leaves = tuple(t.clone().requires_grad_() for t in tensors[: case.leaves])
    return torch.autograd.grad(loss(case, (*leaves, *tensors[case.leaves :])), leaves)


@pytest.mark.parametrize("name", marked(ALL))
def test_func_grad_and_jvp(name: str) -> None:
    case = ALL[name]
    tensors = case.wide()
    want = _gradients(case, tensors)
    rest = tensors[case.leaves :]

    def value(*leaves: Tensor) -> Tensor:
        return loss(case, (*leaves, *rest))

    leaves = tensors[: case.leaves]
    got = torch.func.grad(value, tuple(range(case.leaves)))(*leaves)
    torch.testing.assert_close(got, want)
    tangents = tuple(torch.randn_like(t) for t in leaves)
    if name == "importance_loss, dreg":
        # Its gradient is no derivative of its value.
        return
    _, pushed = torch.func.jvp(value, leaves, tangents)
    along = sum((g * t).sum() for g, t in zip(want, tangents, strict=True))
    torch.testing.assert_close(pushed, along)


@pytest.mark.parametrize("name", marked(ALL))
def test_vmap(name: str) -> None:
    case = ALL[name]
    several = [case.wide() for _ in range(3)]
    stacked = [torch.stack(each) for each in zip(*several, strict=True)]
    got = torch.vmap(lambda *t: outputs(case.call(*t)))(*stacked)
    each = [outputs(case.call(*t)) for t in several]
    want = [torch.stack(e) for e in zip(*each, strict=True)]
    assert_same(got, tuple(want))

    def per_sample(*t: Tensor) -> Any:
        at = tuple(range(case.leaves))
        rest = t[case.leaves :]
        return torch.func.grad(lambda *a: loss(case, (*a, *rest)), at)(*t[: case.leaves])

    grads = torch.vmap(per_sample)(*stacked)
    for k, one in enumerate(grads):
        torch.testing.assert_close(one, torch.stack([_gradients(case, t)[k] for t in several]))


@pytest.mark.each(3)
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", marked(ALL, CORE))
def test_compile(name: str, dynamic: bool | None) -> None:
    case = ALL[name]
    compiled = torch.compile(
        lambda *t: loss(case, t), fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    tensors = case.tensors(6)
    leaves = tuple(t.clone().requires_grad_() for t in tensors[: case.leaves])
    for _ in range(2):
        value = compiled(*leaves, *tensors[case.leaves :])
        torch.testing.assert_close(value, loss(case, tensors))
        grads = torch.autograd.grad(value, leaves)
        torch.testing.assert_close(grads, _gradients(case, tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", marked([n for n in OPERATORS if ALL[n].batch[:2] == (0, 0)], CORE))
def test_the_same_tensor_twice(name: str) -> None:
    """As a head whose mean and scale are one, or a sample that is compared with itself."""
    case = ALL[name]
    first, second, *rest = case.tensors(6)
    if first.shape != second.shape:
        pytest.skip("its first two tensors differ in shape")
    leaf = first.clone().requires_grad_()
    compiled = torch.compile(
        lambda a, b, *t: loss(case, (a, b, *t)), fullgraph=True, backend="aot_eager"
    )
    value = compiled(leaf, leaf, *rest)
    want = loss(case, (leaf, leaf, *rest))
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(
        *(torch.autograd.grad(v, leaf)[0] for v in (value, want)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.each(3)
@pytest.mark.parametrize("name", marked(ALL, CORE))
def test_batch_sizes_are_not_compiled_anew(name: str) -> None:
    case = ALL[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *t: loss(case, t), fullgraph=True, backend=counter)
    for size in (6, 4, 9, 17, 2):
        tensors = case.tensors(size)
        torch.testing.assert_close(compiled(*tensors), loss(case, tensors), rtol=1e-5, atol=1e-5)
    # The first as a constant, the others as a symbol.
    assert counter.frame_count <= 2


@pytest.mark.each(12)
@pytest.mark.parametrize("backend", vf.available_backends())
@pytest.mark.parametrize("name", marked(SETTINGS))
def test_annealed_settings_are_not_compiled_anew(name: str, backend: str) -> None:
    """Nor by what takes a graph on to a compiler, which makes a constant of a number wherever it
    knows no operator that takes it as a tensor."""
    call, shapes = SETTINGS[name]
    tensors = [
        torch.randn([6 if d == "B" else d for d in shape], requires_grad=True) for shape in shapes
    ]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for value in (0.5, 0.75, 0.875, 0.625, 0.25):
        value = int(1000 * value) if name in INTEGERS else value
        with vf.backend(backend):
            assert_same(compiled(value, *tensors), call(value, *tensors))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", marked(ALL))
def test_fake_tensors(name: str) -> None:
    case = ALL[name]
    tensors = case.tensors(6)
    want = outputs(case.call(*tensors))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        got = outputs(case.call(*[mode.from_tensor(t) for t in tensors]))
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize("name", marked(ALL))
def test_meta_tensors(name: str) -> None:
    case = ALL[name]
    tensors = case.tensors(6)
    want = outputs(case.call(*tensors))
    with torch.device("meta"):
        got = outputs(case.call(*[t.to("meta") for t in tensors]))
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype, a.device.type) == (b.shape, b.dtype, "meta")


@pytest.mark.parametrize("name", marked(ALL))
def test_functionalisation(name: str) -> None:
    case = ALL[name]
    tensors = case.tensors(6)
    got = torch.func.functionalize(lambda *t: outputs(case.call(*t)))(*tensors)
    assert_same(got, case.call(*tensors))
    rest = tensors[case.leaves :]
    grads = torch.func.functionalize(
        torch.func.grad(lambda *a: loss(case, (*a, *rest)), tuple(range(case.leaves)))
    )(*tensors[: case.leaves])
    torch.testing.assert_close(grads, _gradients(case, tensors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", marked(ALL))
def test_threads(name: str) -> None:
    """As DataParallel: a thread for each replica, forward and backward at the same time."""
    case = ALL[name]
    several = [case.tensors(6) for _ in range(4)]
    want = [_gradients(case, t) for t in several]
    found: dict[int, list[Any]] = {i: [] for i in range(4)}

    def work(i: int) -> None:
        for _ in range(5):
            found[i].append(_gradients(case, several[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, right in enumerate(want):
        assert len(found[i]) == 5
        for grads in found[i]:
            torch.testing.assert_close(grads, right)
