"""A few files of CUDA kernels as a library for the CPU, where loops are a GPU's threads
(csrc/cuda/emulated.h)."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
# What a test of it needs.
MARKS = [
    pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not here"),
    pytest.mark.skipif(sys.platform == "win32", reason="the flags are those of GCC and Clang"),
]


def build(folder: Path, call: str, *kernels: str, optimise: str = "-O0") -> ctypes.CDLL:
    """`call`, C++ that ctypes calls, with these files of csrc/cuda/; a header that lies under
    `folder` takes the place of csrc's."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    (folder / "call.cpp").write_text(call)
    flags = ["-std=c++17", optimise, "-fPIC", "-shared", "-w", "-ffp-contract=off"]
    defined = ["-DVAEFAST_ISA=isa_cuda", "-DVAEFAST_CUDA=1", f"-I{folder}", f"-I{CSRC}"]
    # The emulated GPU itself.
    names = ("emulated.cpp", *(f"{kernel}.cu" for kernel in kernels))
    sources = [folder / "call.cpp", *(CSRC / "cuda" / name for name in names)]
    built = folder / "kernel.so"
    command = [compiler, *flags, *defined, "-x", "c++", *sources, "-o", built]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return ctypes.CDLL(str(built))
