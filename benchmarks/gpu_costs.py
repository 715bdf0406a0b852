"""vaefast/backends/gpu_costs.csv, by which `auto` chooses between the backends of a GPU, from what
was counted or measured of each:

    python benchmarks/gpu_costs.py            # writes it
    python benchmarks/gpu_costs.py --check    # only says whether it is what would be written

Reads benchmarks/results/cuda-instructions-sm_90.csv and triton-instructions-sm_90.csv: of each
operator, form (of a likelihood), pass and dtype the column bound, the time that its arithmetic
takes over the time that its bytes take. A cost is that, and not less than 1: what the memory bounds
takes the same by both. What one of the files lacks keeps its row.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path

_RESULTS = Path(__file__).resolve().parent / "results"
COUNTED = {
    "native": _RESULTS / "cuda-instructions-sm_90.csv",
    "triton": _RESULTS / "triton-instructions-sm_90.csv",
}
FILE = Path(__file__).resolve().parents[1] / "vaefast" / "backends" / "gpu_costs.csv"
COLUMNS = ("operator", "form", "pass", "dtype", "native", "triton", "unit")
UNIT = "times its bytes"

# (operator, form, pass, dtype).
Key = tuple[str, str, str, str]


def counts(path: Path) -> dict[Key, float]:
    """The costs of a results file.

    Raises:
        SystemExit: a column is missing.
    """
    found: dict[Key, float] = {}
    with path.open(newline="") as lines:
        rows = csv.DictReader(lines)
        lacks = {"operator", "form", "pass", "dtype", "bound"} - set(rows.fieldnames or ())
        if lacks:
            raise SystemExit(f"{path.name} has no column {', '.join(sorted(lacks))}")
        for row in rows:
            key = (row["operator"], row["form"], row["pass"], row["dtype"])
            found[key] = max(1.0, float(row["bound"]))
    return found


def made(before: Iterable[dict[str, str]], counted: dict[str, dict[Key, float]]) -> list[list[str]]:
    """The file's rows: those that both have counted, and of the rows `before` the others."""
    rows = {(r["operator"], r["form"], r["pass"], r["dtype"]): r for r in before}
    for key in counted["native"].keys() & counted["triton"].keys():
        native, triton = (f"{counted[name][key]:g}" for name in ("native", "triton"))
        values = (*key, native, triton, UNIT)
        rows[key] = dict(zip(COLUMNS, values, strict=True))
    # Forward before backward.
    order = sorted(rows, key=lambda key: (key[0], key[1], key[3], key[2] != "forward"))
    return [[rows[key][column] for column in COLUMNS] for key in order]


def text() -> str:
    """What the file should hold."""
    with FILE.open(newline="") as lines:
        before = [*csv.DictReader(lines)]
    there = all(path.exists() for path in COUNTED.values())
    counted = {name: counts(path) if there else {} for name, path in COUNTED.items()}
    rows = [[*COLUMNS], *made(before, counted)]
    return "".join(",".join(row) + "\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    wanted = text()
    if args.check:
        sys.exit(f"{FILE.name} is not what the counts say" if FILE.read_text() != wanted else 0)
    FILE.write_text(wanted)


if __name__ == "__main__":
    main()
