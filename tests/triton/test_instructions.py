"""No kernel issues more instructions per element than its budget."""

import csv
import re

import pytest

pytest.importorskip("triton.language")

import instructions
import sass
import torch
from instructions import CASES

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(
            case,
            dtype,
            id=f"{case}-{NAMES[dtype]}",
            marks=[] if (case.form, dtype) == ("poisson", torch.float32) else pytest.mark.slow,
        )
        for case in CASES
        for dtype in NAMES
    ],
)
def test_within_the_budget(case, dtype):
    found = instructions.measured(case, dtype)
    budget = case.budget[dtype == torch.bfloat16]
    assert found.per_element()[0] <= budget, found.by_opcode


def test_the_results_are_of_every_case_and_within_the_budget():
    with instructions.RESULT.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == sass.COLUMNS
    found = {
        (r["operator"], r["form"], r["pass"], r["dtype"]): float(r["instructions"]) for r in rows
    }
    budgets = {
        (case.operator, case.form, case.direction, name): budget
        for case in CASES
        for name, budget in zip(NAMES.values(), case.budget, strict=True)
    }
    assert found.keys() == budgets.keys()
    assert all(found[key] <= budgets[key] for key in found)


def test_the_page_has_the_results():
    with instructions.RESULT.open() as file:
        rows = list(csv.reader(file))[1:]
    page = instructions.PAGE.read_text()
    table = re.search(f"{sass.BEGIN}(.*){sass.END}", page, re.DOTALL)
    assert table.group(1) == sass.table(rows)
