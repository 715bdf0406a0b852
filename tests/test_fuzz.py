"""Random calls against float64, the same ones each time: some seconds of them, and with `--full`
about a minute.

`VAEFAST_FUZZ_SECONDS` asks for others, for that long, from `VAEFAST_FUZZ_SEED` on; `tests/fuzz.py`
is the tool.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tracer_cases
from program import python

import vaefast as vf

TESTS = Path(__file__).parent
SECONDS = float(os.environ.get("VAEFAST_FUZZ_SECONDS", "0"))
SEED = int(os.environ.get("VAEFAST_FUZZ_SEED", "0"))

pytestmark = pytest.mark.skipif(
    "native" not in vf.available_backends(), reason="there is no native backend to test"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own: it registers a likelihood, and a case may crash.
    return subprocess.run(
        [sys.executable, str(TESTS / "fuzz.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=TESTS,
    )


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize(
    ("mode", "share", "seed", "cases"),
    [
        ("eager", 2 / 3, 300_000, 400),
        ("transforms", 1 / 3, 0, 30),
        pytest.param("eager", 0, 300_400, 4_600, marks=pytest.mark.slow),
        pytest.param("transforms", 0, 30, 120, marks=pytest.mark.slow),
    ],
)
def test_random_calls(mode: str, share: float, seed: int, cases: int) -> None:
    if SECONDS and not share:
        pytest.skip("the two others take the time that is asked for")
    if SECONDS:
        which = ("--minutes", f"{SECONDS * share / 60:.4f}", "--seed", str(SEED))
    else:
        which = ("--cases", str(cases), "--seed", str(seed))
    found = run("--mode", mode, *which)
    assert found.returncode == 0, found.stdout[-20000:] + found.stderr[-3000:]


PLANTED = """
import sys
sys.path.insert(0, {tests!r})
import fuzz
import vaefast as vf
right, calls = vf.gaussian_kl, []

def wrong(*args, **kwargs):
    calls.append(1)
    return right(*args, **kwargs) * (1.001 if len(calls) % 3 == 2 else 1)

vf.gaussian_kl = wrong
sys.exit(fuzz.main(["--cases", "1", "--only", "gaussian_kl", "--seed", "3"]))
"""


@pytest.mark.slow
def test_a_planted_fault_is_found_and_made_small() -> None:
    found = subprocess.run(python(PLANTED.format(tests=str(TESTS))), capture_output=True, text=True)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "call 1" in found.stdout
    script = found.stdout.split('"""', 1)[1].split("\n\n\n# ")[0].split("\n\n1 cases")[0]
    script = '"""' + script
    alone = subprocess.run(python(script), capture_output=True, text=True)
    assert alone.returncode == 0, script + alone.stderr
    assert "wanted" in alone.stdout
    assert "'B': 1" in found.stdout


def test_every_operator_has_cases() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import fuzz_operators as f; "
        "print(*f.OPERATORS)"
    )
    done = subprocess.run(python(code), capture_output=True, text=True, check=True)
    public = tracer_cases.public_operators()
    assert set(done.stdout.split()) == public - tracer_cases.LOOPS
