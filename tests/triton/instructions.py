"""Instructions per element of Triton's kernels on sm_90, to a table of docs/triton.md.

`python tests/triton/instructions.py` compiles the calls of CASES and writes
benchmarks/results/triton-instructions-sm_90.csv and the table. No GPU is needed; what is counted,
and what a GPU can issue, is said in tests/sass.py.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "triton")]

import aot  # noqa: E402
import sass  # noqa: E402
import torch  # noqa: E402
from calls.nll import likelihood  # noqa: E402
from calls.sample_kl import posterior  # noqa: E402
from triton_call import BF16, F32  # noqa: E402

from vaefast.backends.triton.likelihoods import HEAVY  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "triton-instructions-sm_90.csv"
PAGE = ROOT / "docs" / "triton.md"
_NAMES = {F32: "float32", BF16: "bfloat16"}


class Case(NamedTuple):
    """A call: how many numbers it moves per element, how many instructions it may issue for one, in
    float32 and in bfloat16, and how many bytes of the caches a thread reads beside: a stream's seed
    and offset, a sample's upstream gradient."""

    operator: str
    direction: str
    moved: int
    budget: tuple[float, float]
    form: str = ""
    beside: int = 0

    def __str__(self):
        return " ".join(filter(None, (self.operator, self.form, self.direction)))

    def run(self, dtype: torch.dtype):
        if self.form:
            return likelihood(self.form, (self.moved - 1) // 2, dtype=dtype)
        backward = self.direction == "backward"
        samples = -1 if self.operator == "gaussian_kl" else 0
        return posterior(dtype=dtype, samples=samples, backward=backward)

    @property
    def elements(self) -> int:
        """Per thread and turn of a kernel's loop."""
        return 4 if self.form in HEAVY else 8


CASES = [
    Case("sample_kl", "forward", 3, (85, 85), beside=16),
    Case("sample_kl", "backward", 5, (120, 120), beside=20),
    Case("gaussian_kl", "forward", 2, (36, 38)),
    Case("nll", "forward", 3, (40, 42), "bernoulli"),
    Case("nll", "forward", 5, (38, 42), "gaussian"),
    Case("nll", "forward", 3, (90, 94), "poisson"),
    Case("nll", "forward", 5, (193, 200), "negative_binomial"),
    Case("nll", "forward", 7, (277, 290), "zero_inflated_negative_binomial"),
    Case("nll", "forward", 5, (156, 166), "discretized_logistic"),
]


def measured(case: Case, dtype: torch.dtype) -> sass.Count:
    """What the call's main kernel issues."""
    (main, *_) = aot.launches(case.run(dtype), 90)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(main.cubin)
        file.flush()
        ((name, code),) = sass.kernels(Path(file.name)).items()
    size = case.moved * dtype.itemsize + case.beside / case.elements
    return sass.count(name, code, case.elements, size)


def bound(found: sass.Count, size: int) -> float:
    """Arithmetic over memory for `size` bytes per element."""
    return max(n / rate for n, rate in zip(found.per_element(), sass.RATES, strict=True)) / size


def rows():
    """Of each case and dtype the results' line."""
    for case in CASES:
        for dtype in (F32, BF16):
            found = measured(case, dtype)
            each = [f"{n:.1f}" for n in found.per_element()]
            size = case.moved * dtype.itemsize
            yield (
                *(case.operator, case.form, case.direction, _NAMES[dtype], size),
                *(*each, f"{bound(found, size):.2f}"),
            )


def main():
    sass.publish(list(rows()), RESULT, PAGE)


if __name__ == "__main__":
    main()
