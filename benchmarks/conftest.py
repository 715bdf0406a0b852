"""`pytest benchmarks/`: one pytest-benchmark entry per case, pass and implementation.

With --benchmark-disable every entry runs once at a small size, as a check that it runs and
agrees with the eager formula. pytest-benchmark measures one entry after the other; figures to
compare come from `python -m benchmarks run`, which takes turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import vaefast as vf

from .record import require_core

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_sessionstart(session: pytest.Session) -> None:
    try:
        require_core()
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "measure" in metafunc.fixturenames:
        entries = [
            (case, what, name)
            for case in metafunc.module.cases()
            for what in case.passes
            for name in case.implementations(DEVICE)
        ]
        ids = [f"{case.name}-{what}-{name}" for case, what, name in entries]
        metafunc.parametrize("measure", entries, ids=ids, indirect=True)


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[], None]:
    """Runs the parametrised entry under pytest-benchmark."""
    case, what, name = request.param

    def run() -> None:
        torch.manual_seed(0)
        chosen = case.small() if benchmark.disabled else case
        inputs = chosen.make(DEVICE)
        if name.startswith("vaefast-"):
            chosen.check(inputs, DEVICE)
        torch._dynamo.reset()
        compiler = "aot_eager" if benchmark.disabled else "inductor"
        call = chosen.call(name, what, inputs, compiler)
        benchmark.group = f"{case.name}, {what}"

        def timed() -> Any:
            result = call.run()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            return result

        with vf.backend(call.backend):
            if not benchmark.disabled:
                timed()
            benchmark(timed)

    return run
