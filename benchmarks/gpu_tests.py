"""A pytest plugin for a GPU run: the native kernels' tests first, in a fixed random order, so that
what a time limit leaves has something of every operator; outcomes are told as they come."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import pytest

# The terminal's: pytest puts its own in the place of sys.stdout.
_OUT = os.dup(1)
# Whether this process is one of several of its own run; the environment may be of another run.
_worker = False


def pytest_configure(config: pytest.Config) -> None:
    global _worker
    _worker = hasattr(config, "workerinput")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> tuple[int, str]:
        name = item.nodeid
        late = 2 if "triton" in name else 1 if "reference" in name else 0
        return late, hashlib.sha256(name.encode()).hexdigest()

    items.sort(key=place)


def pytest_runtest_logreport(report: Any) -> None:
    # A worker's reports come again in the process that started it.
    if _worker:
        return
    if report.when != "call" and report.passed:
        return
    test = {"name": report.nodeid, "outcome": report.outcome}
    if report.failed:
        test["message"] = str(report.longrepr)[-1500:]
    _tell(test)


def pytest_collectreport(report: Any) -> None:
    if report.failed and not _worker:
        _tell({"name": report.nodeid, "outcome": "failed", "message": str(report.longrepr)[-1500:]})


def _tell(test: dict[str, str]) -> None:
    os.write(_OUT, f"\n@test {json.dumps(test)}\n".encode())
