"""The README: drawn from the result files where it has figures, short, its links leading somewhere.

tests/test_docs.py runs its Python.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_benchmarks import load

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not here")


def test_the_two_commands_stand_on_lines_of_their_own() -> None:
    lines = README.read_text().splitlines()
    assert 'pip install -c constraints.txt ".[demo]" && vaefast demo' in lines
    assert 'pip install -c constraints.txt ".[test]" && pytest' in lines


def test_its_figures_are_those_of_the_result_files() -> None:
    report = load("report")
    machines = report.load(ROOT / "benchmarks" / "results")
    drawn = report.readme(machines)
    text = README.read_text()
    assert text.split(report.BEGIN)[1].split(report.END)[0].strip() == drawn.strip()
    # And no other: outside of what is drawn there is no time, speed-up or size.
    rest = text.split(report.BEGIN)[0] + text.split(report.END)[1]
    assert not re.search(r"\d\s?(ms|µs|us|x|MiB|KiB|GB/s|%)\b", rest)


def test_it_is_a_page() -> None:
    report = load("report")
    text = README.read_text()
    before, block, after = re.split(f"{report.BEGIN}|{report.END}", text)
    assert len((before + after).split()) < 1100
    rows = [line for line in block.splitlines() if line.startswith("|")]
    assert 3 <= len(rows) <= 2 + report.ROWS
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == 1


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if anchor:
            found = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert anchor in {slug(heading) for heading in found}, target


def test_pictures_are_shown() -> None:
    """No picture is left over from a table that is gone."""
    shown = {name for page in PAGES for name in re.findall(r"img/([\w.-]+\.png)", page.read_text())}
    assert {p.name for p in (ROOT / "docs" / "img").glob("*.png")} == shown


def test_the_paths_that_contributors_are_sent_to_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:vaefast|csrc|tests|benchmarks|docs)/[^`\s]*)`", text)
    assert len(paths) > 25
    missing = []
    for path in paths:
        there = path.replace("<op>", "sample_kl").replace("<family>", "counts")
        if not any(ROOT.glob(there)) and not path.startswith("vaefast/_C*"):
            missing.append(path)
    assert not missing
