"""The rooms of docs/architecture.md: what it names exists, and the code keeps to its arrows."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text()
PATHS = sorted(set(re.findall(r"`((?:vaefast|csrc|tests)/[^`]*)`", TEXT)))


@pytest.mark.parametrize("path", PATHS)
def test_what_it_names_exists(path):
    op = path.replace("<op>", "sample_kl")
    assert (ROOT / op).exists()


def imported(file):
    """The modules that a file imports, with their full names."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def python(room):
    """The Python files of a room: a file or a folder."""
    path = ROOT / room
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


# A room, and what no file of it imports.
FORBIDDEN = [
    ("vaefast/backends", ("vaefast.ops", "vaefast.nn", "vaefast.distributions", "vaefast.train")),
    ("vaefast/backends/reference", ("vaefast._C", "vaefast.backends.native", "triton")),
    ("vaefast/backends/native", ("triton", "vaefast.backends.triton")),
    ("vaefast/backends/triton", ("vaefast._C", "vaefast.backends.native")),
    ("vaefast/likelihoods", ("vaefast.ops", "vaefast.nn", "vaefast._C", "triton")),
    ("vaefast/ops", ("vaefast.nn", "vaefast.distributions", "vaefast.train", "vaefast.cli")),
    ("vaefast/ops", ("vaefast._C", "triton", "vaefast.backends.triton")),
    ("vaefast/random.py", ("vaefast.ops", "vaefast.likelihoods", "vaefast.nn")),
    ("vaefast/_args.py", ("vaefast.ops", "vaefast.likelihoods", "vaefast.backends")),
]


# `Likelihood.log_prob` is minus `nll`, which it asks for when it is called.
EXCEPT = ("vaefast/likelihoods/_base.py", ("vaefast.ops.nll", "vaefast.ops.nll.nll"))


@pytest.mark.parametrize(("room", "others"), FORBIDDEN)
def test_arrows_of_python(room, others):
    found = [
        (str(file.relative_to(ROOT)), name)
        for file in python(room)
        for name in imported(file)
        if any(name == other or name.startswith(f"{other}.") for other in others)
        and not (room in EXCEPT[0] and name in EXCEPT[1])
    ]
    assert not found


# A room of csrc/, and the rooms whose headers it includes.
INCLUDED = {
    "core": {"core", "math"},
    "math": {"math", "core"},
    "cpu": {"cpu", "core", "math"},
    "cuda": {"cuda", "core", "math"},
    "python": {"python", "core", "cuda"},
}
# What the GPU's kernels take from the CPU's.
SHARED = ("cpu/convert.h", "cpu/positions.h")


@pytest.mark.parametrize("room", INCLUDED)
def test_arrows_of_cpp(room):
    files = [f for f in sorted((ROOT / "csrc" / room).iterdir()) if f.suffix != ".o"]
    assert files
    for file in files:
        text = file.read_text()
        rooms = {h for h in re.findall(r'#include "(\w+/[^"]*)"', text) if h not in SHARED}
        assert {h.split("/")[0] for h in rooms} <= INCLUDED[room], file.name
        if room != "python":
            assert not re.search(r"#include <(pybind11|Python|torch|ATen|c10)", text), file.name


def test_a_page():
    """It is a map: what is longer belongs elsewhere."""
    assert len(TEXT.split()) < 1400
