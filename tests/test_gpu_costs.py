"""Of two backends that could serve a GPU, `auto` takes the one to which the operator costs less by
vaefast/backends/gpu_costs.csv."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import operator_calls
import pytest
import torch
from posing import pose
from test_benchmarks import load
from test_gpu_selection import A100, H100, _forget, machine  # noqa: F401

import vaefast as vf
from vaefast import backends, likelihoods
from vaefast.backends import costs
from vaefast.ops import _plans

ROOT = Path(__file__).resolve().parent.parent
Write = Callable[..., None]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """The file with these rows: operator, form, pass, dtype, native, triton."""
    file = tmp_path / "gpu_costs.csv"

    def write(*rows: tuple[object, ...], unit: str = "instructions per element") -> None:
        columns = ("operator", "form", "pass", "dtype", "native", "triton", "unit")
        lines = [",".join(columns), *(",".join(map(str, (*row, unit))) for row in rows)]
        file.write_text("\n".join(lines) + "\n")
        costs.table.cache_clear()
        _forget()

    monkeypatch.setattr(costs, "FILE", file)
    yield write
    monkeypatch.undo()
    costs.table.cache_clear()
    _forget()


def select(*kind: Any, device: str = "cuda:0") -> str:
    with vf.backend("auto"):
        return backends.select(torch.device(device), *kind)


def test_the_passes_add_up_and_the_native_one_is_taken_where_they_are_alike(machine, written):  # noqa: F811
    machine(["90"], H100)
    written(
        ("sample_kl", "", "forward", "float32", 100, 90),
        ("sample_kl", "", "backward", "float32", 90, 101),
        ("sample_kl", "", "forward", "bfloat16", 90, 89),
        ("gaussian_kl", "", "forward", "float32", 34, 34),
        ("nll", "bernoulli", "forward", "float32", 49, 48),
    )
    f32, bf16 = torch.float32, torch.bfloat16
    assert select("sample_kl", "", f32) == "native"
    assert select("sample_kl", "", bf16) == "triton"
    # As bfloat16: eight to a vector.
    assert select("sample_kl", "", torch.float16) == "triton"
    assert select("gaussian_kl", "", f32) == "native"
    assert select("nll", "bernoulli", f32) == "triton"
    # Of these nothing is known.
    assert select("nll", "bernoulli", torch.float64) == "native"
    assert select("nll", "poisson", f32) == select("mmd", "", f32) == select() == "native"
    with vf.backend("auto"):
        by_form = backends.select_form(torch.device("cuda:0"), "bernoulli", "nll", f32)
    assert by_form == "triton"


def test_a_backend_that_cannot_serve_is_not_taken_for_its_cost(machine, written, monkeypatch):  # noqa: F811
    rows = (("mmd", "", "forward", "float32", 9, 8), ("tc_terms", "", "forward", "float32", 8, 9))
    machine(["90"], A100)
    written(*rows)
    kinds = (("mmd", "", torch.float32), ("tc_terms", "", torch.float32))
    assert [select(*k) for k in kinds] == ["triton", "triton"]
    machine(["80"], A100)
    assert [select(*k) for k in kinds] == ["triton", "native"]
    monkeypatch.setattr(backends, "_triton_cause", lambda device: "there is none")
    _forget()
    assert [select(*k) for k in kinds] == ["native", "native"]
    # On the CPU nothing is chosen by it.
    assert select(*kinds[0], device="cpu") == vf.available_backends()[0]


def test_one_asked_for_by_name_serves_whatever_it_costs(machine, written):  # noqa: F811
    machine(["90"], H100)
    written(("mmd", "", "forward", "float32", 9, 8))
    with vf.backend("native"):
        assert backends.select(torch.device("cuda:0"), "mmd", "", torch.float32) == "native"


def test_info_names_what_another_than_the_first_serves(machine, written):  # noqa: F811
    machine(["90"], H100, A100)
    written(
        ("mmd", "", "forward", "float32", 9, 8),
        ("tc_terms", "", "forward", "float32", 8, 9),
        ("nll", "poisson", "forward", "float32", 9, 8),
    )
    found = vf.info()["by_cost"]
    assert found["cuda:0"] == {"mmd float32": "triton", "nll poisson float32": "triton"}
    # There Triton serves everything.
    assert found["cuda:1"] == {}


def test_explain_says_that_it_is_the_cost(machine, written, monkeypatch):  # noqa: F811
    machine(["90"], H100)
    written(("mmd", "", "forward", "float32", 9, 8))
    monkeypatch.setattr(backends, "_name", lambda device: "cuda:0")
    from vaefast.backends.triton import mmd

    monkeypatch.setattr(mmd, "mmd", lambda x, y, *_: (x.sum() * 0, *_nothing(x, y)))
    with vf.backend("auto"):
        (call,) = vf.explain(vf.mmd, torch.randn(3, 2), torch.randn(4, 2)).calls
    assert call.backend == "triton"
    assert any("mmd float32 costs 9 by 'native' and 8 by 'triton'" in r for r in call.reasons)


def _nothing(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros_like(x), torch.zeros_like(y)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("mmd", "", "forward", "float31", 9, 8), "must be torch's, got 'float31'"),
        (("mmd", "", "forward", "float32", "nine", 8), "could not convert"),
    ],
)
def test_a_torn_file_says_so(written, row, message):
    written(row)
    with pytest.raises(ValueError, match=message):
        costs.table()


def test_passes_have_one_unit(written, tmp_path):
    written(("mmd", "", "forward", "float32", 9, 8), unit="us")
    file = tmp_path / "gpu_costs.csv"
    file.write_text(file.read_text() + "mmd,,backward,float32,9,8,instructions\n")
    with pytest.raises(ValueError, match="one unit, got 'us' and 'instructions'"):
        costs.table()


def test_the_file_is_read_and_names_what_there_is():
    table = costs.table()
    assert len(table) > 8
    forms = vf._C.forms() if hasattr(vf, "_C") else {}
    operators = {"sample_kl", "gaussian_kl", "nll", *vf.__all__, "row_nll"}
    for kind, cost in table.items():
        assert kind.operator in operators, kind
        assert (kind.form in forms or not forms) if kind.operator == "nll" else True
        assert cost.native > 0 and cost.triton > 0


@pytest.mark.parametrize("name", operator_calls.operators())
def test_every_operator_says_what_it_is(name, monkeypatch):
    """A choice that knows no operator could follow no cost."""
    kinds = []
    honest, of_form = backends.select, backends.select_form

    def select(device, operator="", form="", dtype=None):
        kinds.append((operator, dtype))
        return honest(device, operator, form, dtype)

    def select_form(device, form, operator, dtype):
        kinds.append((operator, dtype))
        return of_form(device, form, operator, dtype)

    monkeypatch.setattr(backends, "select", select)
    monkeypatch.setattr(backends, "select_form", select_form)
    # A plan that is found was chosen for before.
    monkeypatch.setattr(_plans, "kept", _plans.Kept())
    for call in operator_calls.calls(name, operator_calls.Sizes()):
        call()
    named = [kind for kind in kinds if kind[0]]
    # Noise by itself is asked for by its state.
    assert named == [kind for kind in kinds if kind != ("", None)] and all(d for _, d in named)
    composed = ("importance_loss", "annealed_log_weights", "log_marginal")
    assert named or name in composed


def test_the_script_takes_what_both_have_counted(tmp_path):
    script = load("gpu_costs")
    header = "operator,form,pass,dtype,instructions,bound\n"
    native, triton = tmp_path / "native.csv", tmp_path / "triton.csv"
    native.write_text(header + "nll,poisson,forward,float32,9,0.9\nmmd,,forward,float32,1,2\n")
    triton.write_text(
        header + "nll,poisson,forward,float32,9,1.2\nsample_kl,,forward,float32,9,2\n"
    )
    counted = {"native": script.counts(native), "triton": script.counts(triton)}
    kept = dict(zip(script.COLUMNS, ("a", "", "forward", "float32", "1", "2", "us"), strict=True))
    old = {**kept, "operator": "nll", "form": "poisson"}
    rows = script.made([kept, old], counted)
    assert rows == [
        ["a", "", "forward", "float32", "1", "2", "us"],
        ["nll", "poisson", "forward", "float32", "1", "1.2", script.UNIT],
    ]
    native.write_text("operator,pass,dtype\n")
    with pytest.raises(SystemExit, match="no column bound, form"):
        script.counts(native)


@pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="needs a checkout")
def test_the_file_is_what_the_counts_say():
    script = load("gpu_costs")
    assert script.FILE.read_text() == script.text(), "run python benchmarks/gpu_costs.py"
    with script.FILE.open(newline="") as lines:
        rows = [*csv.DictReader(lines)]
    keys = [tuple(row[c] for c in script.COLUMNS[:4]) for row in rows]
    assert len(set(keys)) == len(keys)
    known = {*likelihoods.registered(), ""}
    assert {row["form"] for row in rows} <= known


def test_what_poses_takes_it_back(monkeypatch):
    """tests/posing.py, of which several files are made."""
    if "native" not in vf.available_backends():
        pytest.skip("needs the compiled core")
    x = torch.zeros(2)
    with monkeypatch.context() as patch:
        pose(patch)
        assert x.is_cuda and not x.is_cpu
    assert x.is_cpu and not x.is_cuda and x.get_device() == -1
