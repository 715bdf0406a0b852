"""Which backend serves: by device, by name, by environment, and what is said where none can."""

import os
import subprocess

import pytest
import torch
from program import python

import vaefast as vf
from vaefast import backends


def run(code, **environment):
    """Python in a process of its own, since what was found out is remembered."""
    # Not from the checkout's root: the installed package is under test.
    return subprocess.run(
        python(code),
        env={**os.environ, "VAEFAST_BACKEND": "auto", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_cpu_takes_native_first_and_reference_always_last():
    found = vf.available_backends()
    assert found[-1] == "reference"
    with vf.backend("auto"):
        assert backends.select("cpu") == found[0]
    assert vf.info()["serves"]["cpu"] == found[0]


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "xpu"])
def test_every_device_has_an_answer(device):
    """Also a device that this machine does not have."""
    found = vf.available_backends(device)
    assert found[-1] == "reference"
    with vf.backend("auto"):
        assert backends.select(device) == found[0]
    for name in ("native", "triton"):
        cause = backends.unavailable(name, device)
        assert (cause is None) == (name in found)


def test_context_nests_and_restores():
    before = backends.select("cpu")
    with vf.backend("reference"):
        assert backends.select("cpu") == "reference"
        with vf.backend("auto"):
            pass
        assert backends.select("cpu") == "reference"
    assert backends.select("cpu") == before
    with pytest.raises(RuntimeError, match="inner"), vf.backend("reference"):
        raise RuntimeError("inner")
    assert backends.select("cpu") == before


def test_unknown_name_lists_what_exists():
    with pytest.raises(ValueError, match=r"'auto', 'native', 'triton', 'reference', got 'cuda'"):
        vf.backend("cuda")


def test_a_backend_by_name_is_never_replaced_silently():
    """Triton on CPU tensors, outside of its interpreter."""
    code = """
import torch, vaefast as vf
mu = torch.zeros(2, 3)
try:
    with vf.backend("triton"):
        vf.rsample(mu, mu)
except vf.BackendError as error:
    print("refused:", error)
"""
    done = run(code, TRITON_INTERPRET="0")
    assert "refused: backend 'triton' was asked for" in done.stdout, done.stderr


def test_environment_variable():
    code = "from vaefast import backends; print(backends.select('cpu'))"
    assert run(code, VAEFAST_BACKEND="reference").stdout.strip() == "reference"
    done = run(code, VAEFAST_BACKEND="fastest")
    assert done.returncode != 0
    assert "VAEFAST_BACKEND must be one of 'auto'" in done.stderr


def test_nothing_is_probed_at_import():
    code = """
import sys, vaefast
assert "triton" not in sys.modules and "vaefast._C" not in sys.modules, "probed"
import torch
assert not torch.cuda.is_initialized()
print("idle")
"""
    done = run(code)
    assert done.stdout.strip() == "idle", done.stderr


def test_a_missing_core_is_explained_and_replaced_by_the_reference():
    code = """
import sys
sys.modules["vaefast._C"] = None
import torch, vaefast as vf
mu = torch.zeros(2, 3)
z, kl = vf.sample_kl(mu, mu, seed=1)
print(vf.available_backends(), kl.tolist())
try:
    vf.backend("native")
except vf.BackendError as error:
    print(error)
print(vf.info()["native"])
"""
    lines = run(code).stdout.splitlines()
    assert lines[0] == "('reference',) [0.0, 0.0]"
    assert "backend 'native' was asked for" in lines[1]
    assert "vaefast._C did not load" in lines[1]
    assert "missing" in lines[2]


def test_info_is_plain_data():
    found = vf.info()
    assert found["torch"] == torch.__version__
    assert found["vaefast"] == vf.__version__
    assert set(found["backends"]["cpu"]) == {"native", "triton", "reference"}


def test_instruction_sets():
    if "native" not in vf.available_backends():
        pytest.skip("no compiled core")
    from vaefast import _C

    names = _C.available_capabilities()
    assert names[0] == "default"
    # Loaded alone: the package around it would import torch for nothing.
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_C", {_C.__file__!r})
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
print(core.cpu_capability())
"""
    for name in names:
        assert run(code, VAEFAST_CPU_CAPABILITY=name).stdout.strip() == name
    # A fresh process takes the best there is.
    assert run(code, VAEFAST_CPU_CAPABILITY="").stdout.strip() == names[-1]
    with pytest.raises(ValueError, match="sse9"):
        _C.set_cpu_capability("sse9")
