"""csrc/math as the CUDA kernels use it, with the worst errors that NVIDIA states of the
special-function unit: the bounds of the functions, and the likelihoods' forms of their own against
their formulas in double."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
pytestmark = [
    pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not here"),
    pytest.mark.skipif(sys.platform == "win32", reason="the flags are those of GCC and Clang"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    built = tmp_path_factory.mktemp("device") / "device_math"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", f"-I{CSRC}"]
    defined = ["-DVAEFAST_ISA=isa_cuda"]
    command = [compiler, *flags, *defined, CSRC / "tests/device_math.cpp", "-o", built]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return built


def test_the_stated_bounds_hold_with_the_units_worst_errors(program: Path) -> None:
    done = subprocess.run([program, "20000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    # Each function and each output of each likelihood, none of them left out as unusual.
    assert done.stdout.count("ok ") >= 30
