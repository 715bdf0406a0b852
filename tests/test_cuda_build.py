"""The CUDA kernels without a GPU: compiled and linked by nvcc, their machine code read, and run in
threads of the CPU, also in other orders than by their numbers, where races are errors."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_instructions
import cuda_pairs
import pytest
import sass
import torch
from program import python

ROOT = Path(__file__).resolve().parent.parent
# The CPU's kernels are linked, and not run: of each file one object in the place of three.
ONE_ISA = "-DVAEFAST_ISAS=default"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="the sources are not here"),
]

# Minutes of building, for which it is all of them or none.
of_nvcc = pytest.mark.further("nvcc")


def build(folder, cuda, *settings, source=ROOT / "csrc"):
    """The module of a build with VAEFAST_CUDA=`cuda`."""
    pybind11 = pytest.importorskip("pybind11")
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    tools = {name: shutil.which(name, path=search) for name in ("cmake", "ninja")}
    if not all(tools.values()):
        pytest.skip("needs cmake and ninja")
    command = [
        tools["cmake"],
        f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DVAEFAST_CUDA={cuda}",
        *settings,
        *("-GNinja", "-S", str(source), "-B", str(folder)),
    ]
    for step in (command, [tools["cmake"], "--build", str(folder), "--target", "_C"]):
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (module,) = folder.glob("_C*.so")
    return module


@pytest.fixture(scope="module")
def cuda_module(tmp_path_factory):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    settings = ("-DCMAKE_BUILD_TYPE=Release", "-DVAEFAST_CUDA_ARCHS=90", ONE_ISA)
    return build(tmp_path_factory.mktemp("cuda"), "1", *settings)


@pytest.fixture(scope="module")
def elements(cuda_module):
    """The instructions of each kernel, as tests/sass.py reads them."""
    if None in map(sass.tool, ("cuobjdump", "nvdisasm")):
        pytest.skip("needs cuobjdump and nvdisasm")
    return cuda_instructions.kernels(cuda_module)


@pytest.fixture(scope="module")
def machine_code(elements):
    """The instructions of each kernel by its mangled name, one to a line."""
    lines = {
        name: (one for one in code if not isinstance(one, str)) for name, code in elements.items()
    }
    return {name: "\n".join(one.text for one in code) for name, code in lines.items()}


@of_nvcc
def test_it_links_and_loads_without_a_driver(cuda_module):
    code = (
        "import importlib.machinery as m, importlib.util as u, sys;"
        "loader = m.ExtensionFileLoader('vaefast._C', sys.argv[1]);"
        "core = u.module_from_spec(u.spec_from_loader('vaefast._C', loader));"
        "loader.exec_module(core);"
        "info = core.build_info();"
        "assert info['cuda'] and info['cuda_archs'] == ['90'], info;"
        "assert core.workspace((4, 100_000, 1), 4, False, 4) > 0"
    )
    subprocess.run(python(code, str(cuda_module)), check=True)


@of_nvcc
def test_no_kernel_spills(machine_code):
    assert len(machine_code) > 20
    spilled = [name for name, code in machine_code.items() if re.search(r"\b(LDL|STL)\b", code)]
    assert not spilled


@of_nvcc
@pytest.mark.parametrize(
    ("case", "dtype"),
    [pytest.param(c, d, id=f"{c}-{d}") for c in cuda_instructions.CASES for d in c.budget],
)
def test_no_more_instructions_than_the_budget(elements, case, dtype):
    found = cuda_instructions.measured(elements, case, dtype)
    assert found.per_element()[0] <= case.budget[dtype], found.by_opcode


@of_nvcc
@pytest.mark.parametrize("case", cuda_pairs.CASES, ids=str)
def test_no_more_instructions_per_pair_than_the_budget(elements, case):
    found = cuda_pairs.measured(elements, case)
    assert found.all / cuda_pairs.PAIRS_PER_LANE <= case.budget


def test_the_results_of_pairs_are_of_every_case():
    with cuda_pairs.RESULT.open() as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == cuda_pairs.COLUMNS
    found = {(row[1], int(row[2])): float(row[3]) for row in rows[1:]}
    budgets = {(case.way, case.dims): case.budget for case in cuda_pairs.CASES}
    assert found.keys() == budgets.keys()
    assert all(found[key] <= budgets[key] for key in found)
    page = cuda_pairs.PAGE.read_text()
    assert cuda_pairs.BEGIN + cuda_pairs.table(rows[1:]) + cuda_pairs.END in page


def test_the_results_are_of_every_case():
    with cuda_instructions.RESULT.open() as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == sass.COLUMNS
    found = {(*row[:3], row[3]): float(row[5]) for row in rows[1:]}
    budgets = {(*c[:3], d): most for c in cuda_instructions.CASES for d, most in c.budget.items()}
    assert found.keys() == budgets.keys()
    assert all(found[key] <= budgets[key] for key in found)
    page = cuda_instructions.PAGE.read_text()
    assert sass.BEGIN + sass.table(rows[1:]) + sass.END in page


@of_nvcc
def test_dense_operands_move_16_bytes_at_a_time(machine_code):
    # float32 in fours, 16-bit types in eights.
    dense = re.compile(r"(Evaluate|Forward|Backward|Softmax).*fLi(4ELi4|2ELi8)E")
    found = {name: code for name, code in machine_code.items() if dense.search(name)}
    assert len(found) > 20
    for name, code in found.items():
        loads, stores = code.count("LDG.E.128"), code.count("STG.E.128")
        # mu and scale, a parameter and the target, or two classes; z or a gradient.
        assert loads >= 2 and stores >= 1, f"{name}: {loads} loads, {stores} stores"


# Of files whose tests are of several backends those of the kernels; and files of these alone.
CHOSEN = (
    "((native or default) and not test_no_code_is_shared)"
    " or (test_gpu_plans and not interpreters and not waits)"
)


@pytest.mark.further("races")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are tested on the GPU itself")
def test_no_kernels_threads_race(tmp_path):
    """Where a barrier is missing: tests/cuda/races.py."""
    settings = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1", ONE_ISA)
    module = build(tmp_path, "emulate", *settings, "-DVAEFAST_EMULATED_ACCESSES=ON")
    command = [sys.executable, str(ROOT / "tests/cuda/races.py"), str(module)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert int(done.stdout.split()[0]) > 100, done.stdout


@pytest.fixture(scope="module")
def emulated_module(tmp_path_factory):
    settings = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1", ONE_ISA)
    return build(tmp_path_factory.mktemp("emulated"), "emulate", *settings)


# One of each kind of kernel, and the rest.
FIRST = ("sample_kl", "nll", "likelihood_rows", "tc_terms", "sample_monte_carlo_kl", "gpu_plans")
FURTHER = ("grid_shapes", "noise", "rsample", "gaussian_kl", "determinism", "likelihood_mixture")
FURTHER += ("row_shapes", "log_weights", "mmd", "mixture_log_prob", "kinks", "extremes")
FURTHER += ("masked_values", "zero_sizes", "shared_rows", "neutral_settings", "far_sums")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are tested on the GPU itself")
@pytest.mark.parametrize(
    "name", [*FIRST, *(pytest.param(name, marks=pytest.mark.further) for name in FURTHER)]
)
def test_the_kernels_run_on_the_cpu(emulated_module, name):
    runner = [sys.executable, str(ROOT / "tests/cuda/emulated.py"), str(emulated_module)]
    done = subprocess.run(
        [*runner, str(ROOT / "tests" / f"test_{name}.py"), "-k", CHOSEN],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-4000:]
