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


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("file", "least", "chosen"),
    [
        # One of each kind in a plain run.
        ("kernel_checks.py", 5, "test_posterior_against_float64 and 11 or bernoulli and 1"),
        *(
            pytest.param(file, least, "", marks=pytest.mark.slow, id=file)
            for file, least in (
                ("kernel_checks.py", 200),
                ("row_checks.py", 50),
                ("pair_checks.py", 50),
                ("edge_checks.py", 60),
            )
        ),
    ],
)
def test_kernels_in_the_interpreter(tmp_path, file, least, chosen):
    report = tmp_path / "report.xml"
    # Not "python -m pytest" from the root: that would import the checkout, not what is installed.
    command = [
        *python("import pytest; sys.exit(pytest.main(sys.argv[1:]))"),
        *(str(HERE / file), f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")),
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
