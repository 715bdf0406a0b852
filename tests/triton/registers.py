"""Registers, stack and launches of the catalogue's calls, to a table of docs/triton.md.

`python tests/triton/registers.py` compiles them for three architectures and writes
benchmarks/results/triton-registers.csv and the table; with names of calls it measures these anew
and leaves the others' lines as they are. No GPU is needed.
"""

import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "triton")]

import aot  # noqa: E402
from catalogue import CALLS  # noqa: E402

ARCHS = (80, 90, 100)
RESULT = ROOT / "benchmarks" / "results" / "triton-registers.csv"
PAGE = ROOT / "docs" / "triton.md"
BEGIN, END = "<!-- registers -->\n", "<!-- /registers -->\n"


def measured(calls):
    """(call, architecture, kernel, warps, registers, bytes of stack), one per launch."""
    for call in calls:
        for arch in ARCHS:
            for one in aot.launches(call.run, arch):
                yield (call.name, f"sm_{arch}", one.kernel, one.warps, one.registers, one.stack)


def table(rows):
    """Each call's launches, its bytes per element, and the most registers of a launch of it."""
    lines = [
        "| call | launches | bytes/element | registers sm_80 | sm_90 | sm_100 |",
        "|---|---|---|---|---|---|",
    ]
    for call in CALLS:
        found = {arch: [r for r in rows if r[:2] == (call.name, f"sm_{arch}")] for arch in ARCHS}
        launches = len(found[ARCHS[0]])
        most = [_most(found[arch]) for arch in ARCHS]
        size = f"{call.bytes:g}" if call.bytes else "–"
        lines.append(" | ".join([f"| {call.name}", str(launches), size, *most]) + " |")
    return "\n".join(lines) + "\n"


def _most(launches):
    spilled = sum(r[5] for r in launches)
    return f"{max(r[4] for r in launches)}" + (f" ({spilled} bytes spilled)" if spilled else "")


def kept(names):
    """The results' lines of calls that have none of these names."""
    with RESULT.open() as file:
        lines = [line for line in list(csv.reader(file))[1:] if line[0] not in names]
    return [(*line[:3], *map(int, line[3:])) for line in lines]


def main():
    names = sys.argv[1:]
    assert {call.name for call in CALLS} >= set(names), names
    rows = list(measured(call for call in CALLS if not names or call.name in names))
    if names:
        rows += kept(names)
    place = {call.name: number for number, call in enumerate(CALLS)}
    # A call's launches stay in the order in which it makes them.
    rows = sorted((r for r in rows if r[0] in place), key=lambda r: (place[r[0]], int(r[1][3:])))
    with RESULT.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("call", "architecture", "kernel", "warps", "registers", "stack_bytes"))
        writer.writerows(rows)
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + table(rows) + END + after)


if __name__ == "__main__":
    main()
