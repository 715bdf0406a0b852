"""docs/lecture.md says what the kept run of the lecture found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = json.loads((ROOT / "benchmarks" / "results" / "lecture.json").read_text())["claims"]
VERDICTS = {True: "holds", False: "does not hold", None: "holds in part"}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_page_has_the_run_s_verdict(name: str) -> None:
    claim = CLAIMS[name]
    row = f"| `{name}` | {VERDICTS[claim['holds']]} | {claim['outcome']} |"
    assert row in (ROOT / "docs" / "lecture.md").read_text().splitlines()
