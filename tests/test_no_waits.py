"""No operator waits for its device: every call's tensor operations are looked at on the CPU.

The tensors say that they are not on the CPU and the kernels are left out, so that the Python is
walked that a GPU's calls walk. What would read a tensor's values on the host is an error.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_benchmarks import load
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode

import vaefast as vf
from vaefast import backends, likelihoods

OPERATORS = load("operators").operators()
PACKAGE = Path(vf.__file__).parent
aten = torch.ops.aten

# Each copies to the host, or has a result whose shape the host must learn.
WAITING = {
    "_local_scalar_dense": "a number is read: item(), int(), float(), bool()",
    "item": "a number is read",
    "is_nonzero": "a number is read",
    "equal": "two tensors are compared for the host",
    "allclose": "two tensors are compared for the host",
    "nonzero": "its shape depends on values",
    "argwhere": "its shape depends on values",
    "masked_select": "its shape depends on values",
    "_unique": "its shape depends on values",
    "_unique2": "its shape depends on values",
    "unique_dim": "its shape depends on values",
    "unique_consecutive": "its shape depends on values",
    "bincount": "its shape depends on values",
    "histc": "its bounds are read",
    "lift_fresh": "torch.tensor copies from the host",
}


class NoWaits(TorchDispatchMode):
    """Raises AssertionError at what would wait; `ran` are this library's operators that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "vaefast":
            self.ran.add(func.name())
            with self:
                return func._op_dk(DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        cause = self.cause(func, args, kwargs)
        assert cause is None, f"{func} would wait for the device: {cause}"
        return func(*args, **kwargs)

    @staticmethod
    def cause(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        name = func._schema.name.removeprefix("aten::")
        if name in ("repeat_interleave",) and isinstance(args[0], torch.Tensor):
            known = kwargs.get("output_size") is not None
            return None if known else "the sum of the repeats is read"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            return "a mask as an index" if masks else None
        return WAITING.get(name)


def _modules(name: str) -> list[Any]:
    package = importlib.import_module(f"vaefast.backends.{name}")
    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(f"{package.__name__}.{n}") for n in names]


def _leave_out_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from vaefast.backends.native import nll, sample_kl

    core = sys.modules["vaefast._C"]
    for module in _modules("native"):
        for name in ("place", "place_with"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *_, **__: (0, 0, 0, 0, None))
    asking = ("workspace", "forms", "info", "capabilit", "thread", "buffer", "set_")
    for name, value in vars(core).items():
        if inspect.isbuiltin(value) and not any(text in name for text in asking):
            monkeypatch.setattr(core, name, lambda *_, **__: None)
    # What is prepared is left out too, and no plan of that is kept.
    monkeypatch.setattr(core, "prepare_sample_kl", lambda *_: (lambda *_: None,) * 2)
    monkeypatch.setattr(core, "prepare_nll", lambda *_: (lambda *_: None,) * 2)
    for module in (sample_kl, nll):
        monkeypatch.setattr(module, "_made", module._made.__wrapped__)
    # A build without CUDA tells no workspace.
    monkeypatch.setattr(core, "__getattr__", _no_workspace, raising=False)


def _no_workspace(name: str) -> Any:
    if name.endswith("_workspace"):
        return lambda *_: 0
    raise AttributeError(name)


def _leave_out_triton_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_triton_cause", lambda _: None)
    for module in _modules("triton"):
        if hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", lambda *_, **__: None)


@pytest.fixture(params=["reference", "native", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A backend as tensors of a GPU meet it."""
    name = request.param
    if name == "native" and "native" not in vf.available_backends():
        pytest.skip("needs the compiled core")
    if name == "triton":
        pytest.importorskip("triton")
        _leave_out_triton_kernels(monkeypatch)
    if name == "native":
        _leave_out_native_kernels(monkeypatch)
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False), raising=False)
    backends._serving.cache_clear()
    with vf.backend(name):
        yield name
    backends._serving.cache_clear()


def walk(operator: Any, mode: NoWaits) -> None:
    inputs = operator.inputs("cpu", operator.dtype)
    with mode:
        operator.call(inputs)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_no_operator_waits(operator, backend):
    mode = NoWaits()
    walk(operator, mode)
    if operator.op not in ("importance_loss", "log_marginal") and backend != "reference":
        assert mode.ran, "no operator of this library was seen"


def test_every_operator_is_looked_at(backend):
    """Every kernel, every public operator, every likelihood."""
    if backend == "reference":
        pytest.skip("its operators are plain PyTorch")
    mode = NoWaits()
    for operator in OPERATORS:
        walk(operator, mode)
    schemas = torch._C._jit_get_all_schemas()
    known = {s.name for s in schemas if s.name.startswith("vaefast::")}
    # Where a wide gradient is scaled, it is so by torch inside of a mode.
    assert known - mode.ran <= {"vaefast::draw"}, known - mode.ran


def test_the_catalogue_names_every_public_operator():
    public = {
        name
        for name in vf.__all__
        if inspect.isfunction(getattr(vf, name)) and ".ops." in getattr(vf, name).__module__
    }
    assert public == {o.op for o in OPERATORS} - {"random"}
    for name in likelihoods.registered():
        assert any(o.name == f"nll {name}" for o in OPERATORS), name
    names = [o.name for o in OPERATORS]
    assert len(set(names)) == len(names)


def waits(x: torch.Tensor) -> dict[str, Any]:
    """What must be seen, so that the tests above are not empty."""
    mask = x > 0
    return {
        "item": lambda: x[0].item(),
        "int": lambda: int(x[0]),
        "float": lambda: float(x[0]),
        "bool": lambda: bool(mask.any()),
        "equal": lambda: torch.equal(x, x),
        "nonzero": lambda: x.nonzero(),
        "one argument's where": lambda: torch.where(mask),
        "mask": lambda: x[mask],
        "mask assigned": lambda: x.clone().__setitem__(mask, 0.0),
        "mask of many": lambda: x.clone().__setitem__(mask, torch.zeros(int(mask.sum()))),
        "masked_select": lambda: x.masked_select(mask),
        "unique": lambda: x.unique(),
        "repeats": lambda: x.repeat_interleave(mask.long()),
        "constant": lambda: torch.tensor([1, 2]),
    }


@pytest.mark.parametrize("name", sorted(waits(torch.zeros(1))))
def test_what_waits_is_seen(name):
    x = torch.arange(-2.0, 3.0)
    with NoWaits(), pytest.raises(AssertionError, match="would wait"):
        waits(x)[name]()


def test_an_operator_that_waits_is_seen(monkeypatch):
    """Inside of this library's operators as well."""
    from vaefast.backends.reference import row_nll

    honest = row_nll.multinomial

    @functools.wraps(honest)
    def waiting(params, target, numbers):
        assert float(params.sum()) == float(params.sum())
        return honest(params, target, numbers)

    monkeypatch.setitem(row_nll.ROW_FORMULAS, "multinomial", waiting)
    (operator,) = [o for o in OPERATORS if o.name == "nll multinomial"]
    with vf.backend("reference"), pytest.raises(AssertionError, match="would wait"):
        walk(operator, NoWaits())


@pytest.mark.parametrize("seed", [0, 5, -1, 2**63, 2**64 - 1, 12_345_678_901_234])
def test_an_int_seed_is_filled_where_it_is_wanted(seed, monkeypatch):
    x = torch.zeros(3)
    want = vf.random.make_state(x, 1, seed)
    with NoWaits():
        on_meta = vf.random.make_state(torch.zeros(3, device="meta"), 1, seed)
    assert (on_meta.shape, on_meta.dtype, on_meta.device.type) == ((2,), torch.int64, "meta")
    # The same numbers by the way that another device takes.
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False), raising=False)
    with NoWaits():
        found = vf.random.make_state(x, 1, seed)
    monkeypatch.undo()
    assert torch.equal(found, want) and found.tolist()[1] == 0


# What a tensor has that reads its values on the host, whatever the CPU's tensors show of it.
METHODS = {"item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "is_nonzero", "argwhere"}
FUNCTIONS = {"equal", "allclose", "nonzero", "masked_select", "argwhere", "tensor", "as_tensor"}
FUNCTIONS |= {"unique", "unique_consecutive", "bincount", "from_numpy", "synchronize"}
# "file: function: call", and why it may stand there.
ALLOWED = {
    "_args.py: _read: .item": "a tensor given for a number, which the docs say is read",
    "ops/_register.py: _run: .tolist": "a CPU tensor of a compiled graph's numbers",
    "ops/_autograd.py: scaled: .item": "of a number in this machine's memory",
    "ops/_nll_backward.py: as_made: .item": "of a number in this machine's memory",
    "ops/_validate.py: check_domain: .item": "validate=True, which says that it waits",
    "ops/_validate.py: check_target: .item": "validate=True, which says that it waits",
    "ops/tril_sample_kl.py: tril_sample_kl: .item": "validate=True, which says that it waits",
    "random.py: make_state: torch.tensor": "a sequence of seeds, which is sent without waiting",
    "random.py: _filled: torch.tensor": "on the CPU",
}


def _calls(path: Path) -> Iterator[str]:
    where = path.relative_to(PACKAGE).as_posix()

    def visit(node: ast.AST, function: str) -> Iterator[str]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, node.func.value
            of_torch = isinstance(owner, ast.Name) and owner.id in ("torch", "cuda")
            if of_torch and name in FUNCTIONS:
                yield f"{where}: {function}: torch.{name}"
            elif not of_torch and name in METHODS:
                yield f"{where}: {function}: .{name}"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    yield from visit(ast.parse(path.read_text()), "")


def test_the_source_has_no_other_wait():
    files = [*PACKAGE.glob("ops/*.py"), *PACKAGE.glob("backends/**/*.py"), PACKAGE / "random.py"]
    files += [*PACKAGE.glob("likelihoods/*.py"), PACKAGE / "_args.py", *PACKAGE.glob("nn*.py")]
    assert len(files) > 60
    found = {call for path in files for call in _calls(path)}
    assert found == set(ALLOWED), (found - set(ALLOWED), set(ALLOWED) - found)
