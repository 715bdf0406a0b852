"""What a run takes of the tests."""

import os
import subprocess
from pathlib import Path

import pytest
from program import python

ROOT = Path(__file__).resolve().parent.parent


def _collected(*options: str) -> set[str]:
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = python(code, "--collect-only", "-q", "tests/test_rsample.py", *options)
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line for line in done.stdout.splitlines() if "::" in line}


@pytest.mark.slow
def test_the_parts_of_the_further_cases_are_the_whole_once():
    plain, whole = _collected(), _collected("--full")
    even, odd = _collected("--full", "--part", "0/2"), _collected("--full", "--part", "1/2")
    # What a plain run takes is in both.
    assert plain < even < whole and plain < odd < whole
    assert even | odd == whole and even & odd == plain
