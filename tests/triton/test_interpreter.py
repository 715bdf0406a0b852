"""Runs the kernels' checks in Triton's interpreter: processes of their own, as it is set early."""

import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from program import python

pytest.importorskip("triton.language")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


# One of each kind of kernel for a plain run.
CHOSEN = (
    *("test_posterior_against_float64 and 11", "test_nll_against_float64 and bernoulli and 1"),
    *("test_categorical_in_shared_blocks and float64", "test_multinomial and 1271 and float32"),
    *("test_mixture and Logistic and float64", "test_mixture_in_two_shares and True"),
    "test_masked_out_items",
    *("test_tc_terms_in_two_shares and mss", "test_mmd_in_two_shares"),
    *("test_monte_carlo_kl_of_many_samples", "test_sample_monte_carlo_kl_of_many_samples"),
    *("test_its_error_is_the_manuals", "test_fractional_counts and float32"),
)


def test_one_of_each_kind(tmp_path):
    files = ("kernel", "row", "pair", "hardware", "count")
    files = tuple(f"{name}_checks.py" for name in files)
    check(tmp_path, files, 15, " or ".join(f"({one})" for one in CHOSEN))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("file", "least"),
    [
        ("kernel_checks.py", 200),
        pytest.param("row_checks.py", 35, marks=pytest.mark.further),
        pytest.param("pair_checks.py", 90, marks=pytest.mark.further),
        ("edge_checks.py", 60),
        ("hardware_checks.py", 25),
        pytest.param("count_checks.py", 11, marks=pytest.mark.further),
    ],
)
def test_kernels_in_the_interpreter(tmp_path, file, least):
    check(tmp_path, (file,), least)


def check(tmp_path, files, least, chosen=""):
    report = tmp_path / "report.xml"
    # Not "python -m pytest" from the root: that would import the checkout, not what is installed.
    command = [
        *python("import pytest; sys.exit(pytest.main(sys.argv[1:]))"),
        *(*(str(HERE / file) for file in files), f"--rootdir={ROOT}"),
        *("-c", str(ROOT / "pyproject.toml")),
        *("-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-k", chosen),
    ]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "VAEFAST_BACKEND": "auto",
        "PYTEST_ADDOPTS": "",
    }
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert report.exists(), f"{run.stdout}\n{run.stderr}"
    suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    assert run.returncode == 0 and not counts["failures"] + counts["errors"], run.stdout[-20_000:]
    # A suite that was not found, or skipped itself, must not pass.
    assert counts["tests"] > least and counts["skipped"] == 0, counts
