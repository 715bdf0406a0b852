"""The figures of docs/integrations.md are those of the result file, and the cases are there."""

import json

import pytest
from test_benchmarks import load


def test_the_table_is_the_result_files():
    integrations = load("integrations")
    found = json.loads(integrations.RESULT.read_text())
    assert set(found) <= set(integrations.LIBRARIES)
    shown = integrations.DOCS.read_text().split(integrations.BEGIN)[1].split(integrations.END)[0]
    assert shown.strip() == integrations.drawn(found)


def test_pyros_are_no_slower():
    found = json.loads(load("integrations").RESULT.read_text())["Pyro"]["instructions"]
    for case, counts in found.items():
        assert counts["vaefast"] <= counts["own"], case


@pytest.mark.parametrize("package", ["pyro", "pythae", "diffusers", "scvi"])
def test_a_librarys_cases_run(package):
    pytest.importorskip(package, reason=f"needs {package}: pip install '.[integrations]'")
    integrations = load("integrations")
    for case, columns in getattr(integrations, f"{package}_cases")():
        assert "own" in columns and "vaefast" in columns, case
        for run in columns.values():
            if isinstance(run, integrations.Patched):
                with run.patched():
                    run.run()
            else:
                run()
