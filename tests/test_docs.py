"""The documentation's code runs: every public docstring, and the README's blocks in order."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import vaefast as vf

ROOT = Path(__file__).resolve().parent.parent
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules():
    """Every module with an example: backends and ports are imported by who needs them."""
    yield "vaefast"
    for found in pkgutil.walk_packages(vf.__path__, "vaefast."):
        skipped = (".native", ".triton", "._C", ".cli", ".integrations", ".train")
        if not any(part in found.name for part in skipped):
            yield found.name


@pytest.mark.parametrize("name", list(modules()))
def test_docstrings(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch, "vf": vf}, optionflags=FLAGS)
    assert result.failed == 0


PUBLIC = [
    name
    for name in vf.__all__
    if callable(getattr(vf, name)) and not (
        isinstance(getattr(vf, name), type) and issubclass(getattr(vf, name), Exception)
    )
]  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_described(name):
    assert (getattr(vf, name).__doc__ or "").strip()


@pytest.mark.parametrize(
    "name",
    [n for n in PUBLIC if getattr(getattr(vf, n), "__module__", "").startswith("vaefast.ops.")
     and not isinstance(getattr(vf, n), type)],
)  # fmt: skip
def test_operators_docstrings_are_whole(name):
    text = getattr(vf, name).__doc__
    for part in ("Args:", "Returns:", "Raises:", "Example:", ">>>", "Source:"):
        assert part in text, f"{name}: no {part}"
    # A sample has x's unit or none, and a discrepancy of means in feature space none.
    assert "nats" in text or name in ("rsample", "mmd")


@pytest.mark.parametrize(
    "cls",
    [*vf.likelihoods.registered().values(), *vf.likelihoods.registered_rows().values()],
    ids=lambda cls: cls.name,
)
def test_every_likelihood_has_an_example(cls):
    assert ">>>" in (cls.__doc__ or "")


def test_everything_in_all_exists():
    for name in vf.__all__:
        assert hasattr(vf, name)


README = ROOT / "README.md"


def blocks():
    text = README.read_text() if README.exists() else ""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.skipif(not blocks(), reason="the README holds no Python")
def test_readme():
    """In order, in one namespace, beside the model that it speaks of."""
    mu, logvar = torch.nn.Linear(12, 4), torch.nn.Linear(12, 4)
    namespace = {
        "torch": torch,
        "F": torch.nn.functional,
        "vf": vf,
        "encoder": lambda x: torch.cat([mu(x), logvar(x)], 1),
        "decoder": torch.nn.Linear(4, 12),
        "x": torch.rand(6, 12),
        "beta": 0.5,
    }
    for block in blocks():
        exec(compile(block, str(README), "exec"), namespace)
