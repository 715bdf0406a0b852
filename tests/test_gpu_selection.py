"""Which backend serves a GPU of which compute capability, with capabilities that are made up."""

import pytest
import torch

import vaefast as vf
from vaefast import backends
from vaefast.cli.info import missing

A100, RTX3090, RTX4090, H100, B200, RTX5090 = (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)
RELEASE = ["80", "86", "89", "90", "100", "120"]


@pytest.mark.parametrize(
    ("archs", "serves", "does_not"),
    [
        (["90"], [H100, B200, RTX5090], [A100, RTX3090, RTX4090, (7, 5)]),
        (["80"], [A100, RTX3090, RTX4090, H100, B200], [(7, 5), (7, 0)]),
        (["86"], [RTX3090, RTX4090, H100], [A100]),
        (["80", "90"], [A100, RTX3090, RTX4090, H100, B200], [(7, 5)]),
        # Only the last has PTX: 8.9 newer than 8.6 is served by its machine code, 10.0 by PTX.
        (["75", "86"], [(7, 5), RTX3090, RTX4090, H100, B200], [(7, 0), A100]),
        (["90a"], [H100], [A100, B200]),
        (["80", "90a"], [A100, RTX3090, H100], [B200, RTX5090]),
        (["100f"], [B200, (10, 3)], [H100, RTX5090]),
        (RELEASE, [A100, RTX3090, RTX4090, H100, B200, RTX5090, (13, 0)], [(7, 5)]),
        ([], [], [A100, H100]),
    ],
    ids=str,
)
def test_what_a_build_runs_on(archs, serves, does_not):
    for capability in serves:
        assert backends.runs_on(archs, capability), capability
    for capability in does_not:
        assert not backends.runs_on(archs, capability), capability


@pytest.fixture
def machine(monkeypatch):
    """A machine with GPUs of these capabilities, a build for these architectures, and Triton."""

    def made(archs, *capabilities):
        core = pytest.importorskip("vaefast._C")
        info = {**core.build_info(), "cuda": bool(archs), "cuda_archs": archs}
        monkeypatch.setattr(core, "build_info", lambda: info)
        monkeypatch.setattr(backends, "_triton_cause", lambda device: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {capabilities[i]}")
        _forget()

    yield made
    monkeypatch.undo()
    _forget()


def _forget():
    for function in (backends._serving, backends._native_cause):
        function.cache_clear()


def select(device):
    with vf.backend("auto"):
        return backends.select(torch.device(device))


def test_a_build_for_another_gpu_leaves_it_to_triton_and_says_why(machine):
    machine(["90"], A100)
    assert select("cuda:0") == select("cuda") == "triton"
    assert vf.available_backends("cuda") == ("triton", "reference")
    facts = vf.info()
    assert facts["serves"]["cuda"] == "triton"
    reason = facts["backends"]["cuda"]["native"]
    assert "compute capability 90" in reason and "has 80" in reason
    assert "VAEFAST_CUDA_ARCHS=80" in reason
    assert any(reason in line for line in missing(facts, {}))
    with pytest.raises(vf.BackendError, match="has 80"), vf.backend("native"):
        backends.select(torch.device("cuda:0"))


def test_a_build_for_the_gpu_serves_it(machine):
    machine(["80", "90"], H100)
    assert select("cuda:0") == select("cuda") == "native"
    assert vf.info()["backends"]["cuda"]["native"] == "available"


def test_each_of_two_kinds_of_gpu_has_its_own_backend(machine):
    machine(["90"], H100, A100)
    assert select("cuda:0") == "native"
    assert select("cuda:1") == "triton"
    # What serves every one of them.
    assert select("cuda") == "triton"
    serves = vf.info()["serves"]
    assert (serves["cuda:0"], serves["cuda:1"]) == ("native", "triton")


def test_a_build_without_cuda_needs_no_gpu_to_say_so(machine):
    machine([], H100)
    assert select("cuda:0") == "triton"
    assert "built without CUDA" in vf.info()["backends"]["cuda"]["native"]
