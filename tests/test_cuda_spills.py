"""No CUDA kernel has registers in memory on sm_80 and sm_100, the oldest and the newest that
releases are for, but for those of FRAMES. Of sm_90 that is test_cuda_build.py's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sass

CSRC = Path(__file__).resolve().parents[1] / "csrc"
ARCHS = ("80", "100")
# Bytes of stack that a kernel may have, by the compute capability and a regular expression on its
# name: arrays that nothing is spilled to, but for a word of the first.
FRAMES = {
    ("100", r"SoftmaxColumnsIfLi2ELi8E"): 8,
    ("100", r"zero_inflated_negative_binomialIfEEfLi[04]ELi4E"): 48,
    ("100", r"zero_inflated_negative_binomialIfEEfLi2ELi8E"): 96,
    ("100", r"zero_inflated_negative_binomialIdEEdLi0ELi4E"): 96,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.further,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not here"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where CMake knows how each kernel compiles."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    tools = [shutil.which(name, path=search) for name in ("nvcc", "cmake", "ninja")]
    if None in (*tools, sass.tool("cuobjdump")):
        pytest.skip("needs nvcc, cuobjdump, cmake and ninja")
    made = tmp_path_factory.mktemp("spills")
    command = [
        *(tools[1], f"-DCMAKE_MAKE_PROGRAM={tools[2]}", "-DVAEFAST_PYTHON=OFF", "-DVAEFAST_CUDA=1"),
        *(f"-DVAEFAST_CUDA_ARCHS={';'.join(ARCHS)}", "-DCMAKE_BUILD_TYPE=Release"),
        *("-GNinja", "-S", CSRC, "-B", made),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return made


def frames(module: Path) -> dict[str, dict[str, int]]:
    """Bytes of stack by compute capability and mangled name; of some files no kernel."""
    command = [str(sass.tool("cuobjdump")), "-res-usage", str(module)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, dict[str, int]] = {}
    for part in re.split(r"^arch = sm_", text, flags=re.MULTILINE)[1:]:
        arch = re.match(r"\d+", part)
        assert arch is not None
        stacks = re.findall(r"Function (\S+):\n\s*REG:\d+ STACK:(\d+)", part)
        assert len(stacks) == part.count("Function ")
        found.setdefault(arch.group(), {}).update({name: int(stack) for name, stack in stacks})
    return found


@pytest.mark.parametrize("source", sorted(path.name for path in CSRC.glob("cuda/*.cu")))
def test_no_kernel_spills(folder: Path, source: str) -> None:
    target = f"CMakeFiles/vaefast_cuda.dir/cuda/{source}.o"
    command = ["cmake", "--build", str(folder), "--target", target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = frames(folder / target)
    assert set(found) == set(ARCHS)
    for arch, stacks in found.items():
        allowed = {
            name: size
            for name in stacks
            for (on, pattern), size in FRAMES.items()
            if on == arch and re.search(pattern, name)
        }
        spilled = {name: n for name, n in stacks.items() if n > allowed.get(name, 0)}
        assert not spilled
