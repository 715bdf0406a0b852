"""What the CUDA kernels issue per element on sm_90, to a table of docs/cuda.md, and the registers
that they take.

`python tests/cuda_instructions.py MODULE` reads a module _C that nvcc built for sm_90 and writes
benchmarks/results/cuda-instructions-sm_90.csv and the table, and cuda-registers-sm_90.csv. No GPU
is needed; what is counted, and what a GPU can issue, is said in tests/sass.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import sass

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "cuda-instructions-sm_90.csv"
PAGE = ROOT / "docs" / "cuda.md"
REGISTERS = RESULT.with_name("cuda-registers-sm_90.csv")
REGISTER_COLUMNS = ("kernel", "registers", "shared_bytes", "stack_bytes")
# As core/args.h numbers them.
ROW_FORMS = ("categorical", "multinomial", "multinomial_sparse")
Code = list[sass.Instruction | str]
# Of what a flag would leave out: the noise's radius, coefficients of e^s - 1 - s and e^s - 1, and a
# sigmoid's division.
NOISE, KL, GROWTH, SLOPE = r"MUFU\.SQRT", r"2\.52610\d+e-05", r"0\.16666135\d+", r"MUFU\.RCP"


class Case(NamedTuple):
    """A call: a regular expression on its kernel's name behind the element's type, the numbers that
    it moves per element, how many instructions it may issue for one, by dtype, what its path must
    have, and the bytes beside that a thread reads per turn: a sample's upstream gradient."""

    operator: str
    form: str
    direction: str
    kernel: str
    moved: int
    budget: dict[str, float]
    through: tuple[str, ...] = ()
    beside: int = 0

    def __str__(self) -> str:
        return " ".join(filter(None, self[:3]))


def _likelihood(form: str, parameters: int, through: tuple[str, ...] = (), **budget: float) -> Case:
    kernel = rf"Evaluate.*\d{form}I.*{{}}"
    return Case("nll", form, "forward", kernel, 1 + 2 * parameters, budget, through)


_FORWARD = r"sample_kl_cu.*7ForwardI.*{}Lb0EEELb0E"
_BACKWARD = r"sample_kl_backward.*8BackwardI.*{}Lb0E"
CASES = [
    Case("sample_kl", "", "forward", _FORWARD, 3, {"float32": 85, "bfloat16": 80}, (NOISE, KL)),
    Case("sample_kl", "", "backward", _BACKWARD, 5, {"float32": 120}, (NOISE, GROWTH), 4),
    Case("gaussian_kl", "", "forward", _FORWARD, 2, {"float32": 34}, (KL,)),
    Case("noise", "", "forward", r"noise_cu.*4FillIfLi8E", 1, {"bfloat16": 44}, (NOISE,)),
    _likelihood("bernoulli", 1, (SLOPE,), float32=47, bfloat16=47),
    _likelihood("gaussian", 2, float32=50),
    _likelihood("poisson", 1, float32=94),
    _likelihood("negative_binomial", 2, float32=200),
    _likelihood("zero_inflated_negative_binomial", 3, float32=281),
    _likelihood("discretized_logistic", 2, float32=156),
]
# Element type as the names have it, bytes, elements per thread and turn.
DTYPES = {"float32": (r"fLi4ELi4E", 4, 4), "bfloat16": (r"fLi2ELi8E", 2, 8)}


def kernels(module: Path) -> dict[str, Code]:
    """The code of each kernel of a module by its mangled name."""
    tool = sass.tool("cuobjdump")
    if tool is None:
        raise FileNotFoundError("cuobjdump is neither in the PATH nor in Triton's package")
    found: dict[str, Code] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [tool, "-xelf", "all", str(module.resolve())]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        for cubin in Path(folder).glob("*.cubin"):
            found.update(sass.kernels(cubin))
    return found


def measured(code: dict[str, Code], case: Case, dtype: str) -> sass.Count:
    """What the call's kernel issues."""
    name, size, elements = DTYPES[dtype]
    (kernel,) = (one for one in code if re.search(case.kernel.format(name), one))
    moved = case.moved * size + case.beside / elements
    return sass.count(kernel, code[kernel], elements, moved, through=case.through)


def rows(code: dict[str, Code]) -> Iterator[tuple[str, ...]]:
    """Of each case and dtype the results' line."""
    for case in CASES:
        for dtype in case.budget:
            found = measured(code, case, dtype)
            each = [f"{n:.1f}" for n in found.per_element()]
            moved = case.moved * DTYPES[dtype][1]
            yield (*case[:3], dtype, str(moved), *each, f"{found.bound():.2f}")


def resources(module: Path) -> list[list[str]]:
    """(kernel, registers, bytes of shared memory, bytes of stack) by the kernels' names."""
    tools = sass.tool("cuobjdump"), sass.tool("c++filt")
    if None in tools:
        raise FileNotFoundError("needs cuobjdump and c++filt")
    usage = [str(tools[0]), "-res-usage", str(module)]
    text = subprocess.run(usage, check=True, capture_output=True, text=True).stdout
    names = subprocess.run(
        [str(tools[1])], input=text, check=True, capture_output=True, text=True
    ).stdout
    found = []
    pattern = r"(?:run|pairs)_kernel<(.*)>\(.*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)"
    for kernel, registers, stack, shared in re.findall(pattern, names):
        short = re.sub(r"vaefast::(isa_cuda::)?(\(anonymous namespace\)::)?", "", kernel)
        short = re.sub(r"\(RowForm\)(\d)", lambda form: ROW_FORMS[int(form.group(1))], short)
        found.append([short.replace(" >", ">").strip(), registers, shared, stack])
    return sorted(found)


def main() -> None:
    module = Path(sys.argv[1])
    lines = list(rows(kernels(module)))
    sass.publish(lines, RESULT, PAGE)
    sass.write(REGISTERS, REGISTER_COLUMNS, resources(module))


if __name__ == "__main__":
    main()
