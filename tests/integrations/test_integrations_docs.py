"""docs/integrations.md runs: each section's blocks in order, in one namespace."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import vaefast as vf

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "integrations.md").read_text()
SECTIONS = {
    part.partition("\n")[0]: re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    for part in TEXT.split("\n## ")[1:]
}


def _counts():
    import scvi

    return {"adata": scvi.data.synthetic_iid(batch_size=32, n_genes=20)}


def _images():
    return {
        "encoder": torch.nn.Linear(12, 8),
        "decoder": torch.nn.Linear(4, 12),
        "x": torch.rand(6, 12).round(),
    }


def _posterior():
    return {
        "vf": vf,
        "moments": torch.randn(2, 8, 4, 4),
        "generator": torch.Generator().manual_seed(0),
    }


def _reconstruction():
    probabilities = torch.rand(6, 784)
    mu, logvar = torch.randn(6, 20), torch.randn(6, 20)
    return {"recon_batch": probabilities, "data": probabilities, "mu": mu, "logvar": logvar}


# What a section needs installed, and the reader's own names that it speaks of.
PREPARED = {
    "scvi-tools": (("scvi",), _counts),
    "Pyro": (("pyro",), _images),
    "diffusers": (("diffusers",), _posterior),
    "pythae": (("pythae",), dict),
    "pytorch/examples, AntixK/PyTorch-VAE and code like it": (("lightning",), _reconstruction),
    "Recipes": ((), lambda: {"vf": vf}),
}


@pytest.mark.parametrize("section", PREPARED)
def test_the_code_runs(section):
    packages, prepare = PREPARED[section]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[integrations]'")
    torch.manual_seed(0)
    namespace = prepare()
    patched = []
    try:
        for block in SECTIONS[section]:
            exec(compile(block, f"docs/integrations.md, {section}", "exec"), namespace)
            patched += [v for v in namespace.values() if hasattr(v, "unpatch")]
    finally:
        for module in patched:
            module.unpatch()
