"""Every likelihood's loop is vector instructions: one branch that GCC makes of a selection, and it
is scalar, at five to ten times the cost, and as right as before."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
# As csrc/CMakeLists.txt has them.
NUMERICS = ["-fno-math-errno", "-fno-trapping-math", "-fno-thread-jumps"]
AVX2 = ["-O3", "-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
FLAGS = {
    "default": ["-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic"],
    "avx2": AVX2,
    "avx512": [*AVX2, *AVX512, "-mprefer-vector-width=512"],
}
LOOP = """
extern "C" void {name}(const {form}<float> likelihood, int n, const float* x, const float* p0,
                       const float* p1, const float* p2, float* value, float* g0, float* g1,
                       float* g2) {{
#pragma GCC ivdep
#line {line} "loop"
  for (int i = 0; i < n; ++i) {{
    const float theta[3] = {{p0[i], p1[i], p2[i]}};
    float grad[3] = {{}};
    value[i] = likelihood.template nll<{grad}>(x[i], theta, grad);
    if constexpr ({grad}) {{
      g0[i] = grad[0];
      g1[i] = grad[1];
      g2[i] = grad[2];
    }}
  }}
}}
"""


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if (
        found is None
        or "Free Software"
        not in subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    ):
        pytest.skip("needs GCC, whose report is read")
    machine = subprocess.run([found, "-dumpmachine"], capture_output=True, text=True).stdout
    if not machine.startswith("x86_64"):
        pytest.skip("the flags are those of x86-64")
    return found


def forms() -> list[str]:
    text = "".join(f.read_text() for f in sorted((CSRC / "math").glob("likelihoods_*.h")))
    tables = re.findall(r"#define VAEFAST_\w+_LIKELIHOODS\(X\)(.*?)\n\n", text, re.DOTALL)
    return re.findall(r"X\((\w+)\)", "".join(tables))


# A plain run takes one of them.
@pytest.mark.parametrize(
    "capability",
    ["avx2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("default", "avx512"))],
)
def test_likelihoods_are_vector_loops(capability: str, tmp_path: Path) -> None:
    gcc = compiler()
    loops = {
        1000 * number: (form, grad)
        for number, (form, grad) in enumerate(
            ((form, grad) for form in forms() for grad in ("false", "true")), 1
        )
    }
    assert len(loops) > 20
    code = [
        '#include "math/likelihoods.h"',
        f"using namespace vaefast::isa_{capability};",
        *(
            LOOP.format(name=f"loop_{line}", form=form, grad=grad, line=line)
            for line, (form, grad) in loops.items()
        ),
    ]
    source = tmp_path / "loops.cpp"
    source.write_text("\n".join(code))
    flags = ["-std=c++17", f"-I{CSRC}", f"-DVAEFAST_ISA=isa_{capability}", *NUMERICS]
    output = ["-fopt-info-vec-optimized", "-c", source, "-o", tmp_path / "loops.o"]
    done = subprocess.run(
        [gcc, *flags, *FLAGS[capability], *output], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = {int(line) for line in re.findall(r"loop:(\d+):\d+: optimized: loop vect", done.stderr)}
    scalar = [what for line, what in loops.items() if not found & set(range(line, line + 12))]
    assert not scalar, f"scalar loops: {scalar}"
