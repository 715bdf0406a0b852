"""A thing has one name in every room, and words that were given up stay so."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPS = ROOT / "vaefast" / "ops"
ROOMS = ("vaefast", "csrc", "tests", "benchmarks", "docs", ".ci")
KINDS = {"", ".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".md", ".csv", ".json"}
# What was given up, and what stands in its place.
OLD = {
    r"estimated_?kl": "sample_monte_carlo_kl",
    r"\blog_?ratio": "monte_carlo_kl, of the opposite sign",
    r"\bmixture_nll|\bMixtureArgs": "logistic_mixture_nll, GaussianMixtureArgs",
    r"\b(?:Row|Linear)?Nll\b|\bMmd\b|\b_NLL\b": "NllOptions and the like, _NllFunction",
    r"\brandom\.drawn\b": "draw_unsettled",
    r"\b(?:short|long) way\b": "fast path, slow path",
    r"\bkAhead\b": "kPrefetch",
}


@functools.cache
def texts():
    """Of every file in a room."""
    return {file.relative_to(ROOT): file.read_text(errors="replace") for file in sources()}


def sources():
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*")):
            plain = file.is_file() and file.suffix in KINDS and "__pycache__" not in file.parts
            if plain and file != Path(__file__):
                yield file


@pytest.mark.parametrize(("old", "new"), OLD.items())
def test_old_names_do_not_come_back(old, new):
    word = re.compile(old, re.IGNORECASE if old.islower() else 0)
    found = [f"{file}: {hit[0]}" for file, text in texts().items() if (hit := word.search(text))]
    assert not found, f"say {new}"


def camel(name):
    return "".join(part.capitalize() for part in name.split("_"))


@pytest.mark.parametrize("file", sorted(OPS.glob("_*.py")), ids=lambda f: f.stem)
def test_an_autograd_function_is_named_by_its_operator(file):
    found = [
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base) == "torch.autograd.Function" for base in node.bases)
    ]
    assert all(name in (f"_{camel(file.stem)}Function", "_WeighingZ") for name in found), found


KERNELS = re.findall(r"X\((\w+), (\w+)Args\)", (ROOT / "csrc/core/kernels.h").read_text())


# The likelihoods with a class dimension are one operator of several kernels.
OWN = {name.removesuffix("_backward") for name, args in KERNELS if args != "RowNll"}


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_kernel_is_its_files_name_in_every_room(name):
    assert (ROOT / "csrc" / "cpu" / f"{name}.cpp").exists()
    for backend in ("native", "reference", "triton"):
        assert (ROOT / "vaefast" / "backends" / backend / f"{name}.py").exists(), backend


# Operators that have a file in every room.
WHOLE = ("mixture_log_prob", "mmd", "tc_terms")


@pytest.mark.parametrize("op", WHOLE)
def test_an_operators_own_files_are_where_the_list_says(op):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    own = text.split("## Add an operator\n")[1].split("\nLists that it enters:\n")[0]
    paths = [p.replace("<op>", op) for p in re.findall(r"`([\w/<>.]+)`", own) if "/" in p]
    assert len(paths) > 13
    assert not [p for p in paths if not (ROOT / p).exists()]
