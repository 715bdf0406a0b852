"""Kernels compiled ahead of time: no spills, 16-byte loads, and how many launches a call takes."""

import pytest

pytest.importorskip("triton.language")

import aot
from catalogue import CALLS
from triton_call import Call

# One of each kernel's kind for a plain run.
KINDS = {
    *("noise, float32", "sample_kl", "sample_kl backward", "nll, bernoulli", "bernoulli, float64"),
    *("categorical, 256 levels", "mixture of 10, 1 channel", "mixture of 500 in 40"),
    *("mmd, 512x10, 7 scales", "monte_carlo_kl, 8x1024x128"),
}
assert {call.name for call in CALLS} >= KINDS


def _slow(call: Call, arch: int) -> bool:
    return arch != 90 or call.name not in KINDS


ON = [
    pytest.param(
        call,
        arch,
        id=f"{call}-sm_{arch}",
        marks=[pytest.mark.slow] if _slow(call, arch) else [],
    )
    for call in CALLS
    for arch in (80, 90, 100)
    if call.everywhere or arch == 90
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("call", "arch"), ON)
def test_compiles_without_spills_to_wide_loads(call, arch):
    found = aot.launches(call.run, arch)
    assert len(found) == call.kernels, [one.kernel for one in found]
    for one in found:
        assert one.stack == 0, f"{one.kernel} spills {one.stack} bytes"
        assert one.count("LDL") == one.count("STL") == 0
        assert one.registers <= 255
    main = found[0]
    wide = sum(
        one in line
        for one in ("LDG.E.128", "LDG.E.CONSTANT.128")
        for line in main.sass.splitlines()
    )
    # Each operand is read in whole 16-byte loads; what is left are states, sums and bytes.
    assert wide >= call.loads, main.sass
    stored = any("STG.E.128" in one.sass for one in found)
    assert stored or not call.loads or call.name.startswith(("gaussian_kl", "monte_carlo_kl, "))
