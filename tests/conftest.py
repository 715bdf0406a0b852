"""What every test stands on: the installed package, the backends there are, seeds and threads."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import vaefast as vf
from vaefast import backends, likelihoods
from vaefast.backends.reference.likelihoods import FORMULAS
from vaefast.train.models._base import MODELS
from vaefast.train.models.backbones import BACKBONES
from vaefast.train.objectives._base import OBJECTIVES

ROOT = Path(__file__).resolve().parent.parent
# At the end: a folder here that shares a library's name must not hide that library.
sys.path.append(str(Path(__file__).parent))


class Target(NamedTuple):
    """A backend under test and the device its tensors live on."""

    name: str
    device: str


def _wrong_package() -> str | None:
    """Why the imported package is not one that an installation would give, or None."""
    package = Path(vf.__file__).resolve().parent
    # A copy of the package and its tests alone is no checkout.
    if package == ROOT / "vaefast" and (ROOT / "pyproject.toml").exists():
        try:
            origin = importlib.metadata.distribution("vaefast").read_text("direct_url.json")
        except importlib.metadata.PackageNotFoundError:
            return f"vaefast was imported from the checkout, {package}, and is not installed"
        if not json.loads(origin or "{}").get("dir_info", {}).get("editable"):
            return (
                f"vaefast was imported from the checkout, {package}, which hides the installed "
                "one; run `pytest`, not `python -m pytest`, or install with `pip install -e .`"
            )
    if os.environ.get("VAEFAST_BACKEND") == "reference":
        return None
    record = package / "_build.json"
    built = json.loads(record.read_text()) if record.exists() else {"native": True}
    if "native" in vf.available_backends("cpu"):
        return None
    if built["native"]:
        return f"vaefast._C is missing although it was built: {vf.info()['native']}"
    return f"vaefast._C was not built: {built['reason']}; VAEFAST_BACKEND=reference tests without"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the slow tests too")
    parser.addoption(
        "--part",
        type=_part,
        metavar="K/N",
        help="of the further cases of a kind (mark `further`) part K of N, 0 <= K < N",
    )


def _part(text: str) -> tuple[int, int]:
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with 0 <= K < N")
    return int(k), int(n)


LEFT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none, and leaves the slow tests to `--full`, or to `-m`
    with "slow" in it."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)
    seen: Counter[str] = Counter()
    for item in items:
        if _repeats(item) or (
            item.get_closest_marker("reference_is_slow") and "reference" in _served(item)
        ):
            _leave_to_full(item)
        if item.get_closest_marker("slow"):
            continue
        each = item.get_closest_marker("each")
        # On a GPU, which is there for minutes, a run takes what there is time for, by itself.
        if each is not None and not item.get_closest_marker("gpu"):
            function = item.nodeid.partition("[")[0]
            if seen[function] % each.args[0]:
                _leave_to_full(item)
            seen[function] += 1
    if config.getoption("part") is not None:
        part, parts = config.getoption("part")
        others = [
            item
            for item in items
            if (further := item.get_closest_marker("further"))
            and zlib.crc32((further.args or (item.nodeid,))[0].encode()) % parts != part
        ]
        left_out = set(others)
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=others)
    if not config.getoption("full") and "slow" not in config.getoption("markexpr"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        # Where one is named, it is meant.
        if slow and len(slow) < len(items):
            items[:] = [item for item in items if not item.get_closest_marker("slow")]
            config.hook.pytest_deselected(items=slow)
            config.stash[LEFT] = len(slow)
    _longest_first(items)


def _leave_to_full(item: pytest.Item) -> None:
    """A further case of a kind of which a plain run has others."""
    item.add_marker(pytest.mark.slow)
    item.add_marker(pytest.mark.further)


def _longest_first(items: list[pytest.Item]) -> None:
    """Files by the longest time that one of their tests asks for: of several processes none is
    left with minutes of building or interpreting when all else is done."""
    longest: dict[Path, float] = {}
    for item in items:
        marker = item.get_closest_marker("timeout")
        if marker is not None and marker.args:
            longest[item.path] = max(marker.args[0], longest.get(item.path, 0))
    items.sort(key=lambda item: -longest.get(item.path, 0))


def _repeats(item: pytest.Item) -> bool:
    """Whether a test is another's, with a lesser instruction set than this machine's best: the same
    sources. A file that keeps them all for a plain run is marked `every_isa`."""
    return not item.get_closest_marker("every_isa") and not _served(item).isdisjoint(
        CPU_BACKENDS[1:-1]
    )


def _served(item: pytest.Item) -> set[object]:
    """The backends that the test is for, of its own parameters."""
    found = getattr(item, "callspec", None)
    params = found.params if found is not None else {}
    return {params.get(name) for name in ("backend", "kernels", "implementation")}


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = session.config.stash.get(LEFT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Of several processes each has left the same."""
    node.config.stash[LEFT] = getattr(node, "workeroutput", {}).get("left", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    left = config.stash.get(LEFT, 0)
    if left:
        terminalreporter.write_line(f"{left} slow tests are left to `pytest --full`")


def pytest_configure(config: pytest.Config) -> None:
    cause = _wrong_package()
    if cause:
        pytest.exit(cause, returncode=pytest.ExitCode.USAGE_ERROR)
    processes = getattr(config.option, "numprocesses", None)
    if processes:
        # Before they start: as many threads in all as there are cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A file's tests stay in one process, with what they build, and files in our order."""
    if config.getoption("dist") not in ("load", "loadscope"):
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            # These build nothing in common, and take minutes each.
            alone = "triton/test_interpreter.py" in nodeid or "triton/test_cubins.py" in nodeid
            return nodeid if alone else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return Files(config, log)


def _capabilities() -> list[str]:
    if "native" not in vf.available_backends("cpu"):
        return []
    from vaefast import _C

    return list(_C.available_capabilities())


CPU_BACKENDS = ["reference", *(f"native-{name}" for name in _capabilities())]
# Without a GPU not collected at all: a thousand skips would hide the one that matters.
GPU_BACKENDS = [
    pytest.param(name, marks=pytest.mark.gpu)
    for name in ("native-cuda", "triton-cuda", "reference-cuda")
    if torch.cuda.is_available()
]


@pytest.fixture(params=[*CPU_BACKENDS, *GPU_BACKENDS])
def backend(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Each backend in turn, with every unwritten result poisoned by NaN."""
    yield from _served_by(request.param)


@pytest.fixture(params=[*CPU_BACKENDS[1:], *GPU_BACKENDS[:2]])
def kernels(request: pytest.FixtureRequest) -> Iterator[Target]:
    """As `backend`, without the reference."""
    yield from _served_by(request.param)


@pytest.fixture(params=CPU_BACKENDS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `backend`, of the CPU's alone, by "reference" or the instruction set's name."""
    for target in _served_by(request.param):
        yield request.param.removeprefix(f"{target.name}-")


def _served_by(param: str) -> Iterator[Target]:
    name, _, detail = param.partition("-")
    device = "cuda" if detail == "cuda" else "cpu"
    if device == "cuda" and name not in vf.available_backends("cuda"):
        pytest.skip(f"{name} cannot serve cuda: {vf.info()['backends']['cuda'][name]}")
    deterministic = torch.are_deterministic_algorithms_enabled()
    # Fills torch.empty and its relatives with NaN, so that memory nobody wrote is seen.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with vf.backend(name):
            if name == "native" and device == "cpu":
                with _capability(detail):
                    yield Target(name, device)
            else:
                yield Target(name, device)
    finally:
        torch.use_deterministic_algorithms(deterministic)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """On a GPU, an operator that a backend has no kernel of is skipped, and the reason shown."""
    try:
        return (yield)
    except backends.BackendError as error:
        if item.get_closest_marker("gpu") and "has no kernel of" in str(error):
            pytest.skip(str(error))
        raise


class _capability:
    def __init__(self, name: str) -> None:
        from vaefast import _C

        self.core, self.name, self.before = _C, name, _C.cpu_capability()

    def __enter__(self) -> None:
        self.core.set_cpu_capability(self.name)

    def __exit__(self, *error: object) -> None:
        self.core.set_cpu_capability(self.before)


# What a user may register: likelihoods, with their formulas, and what `vaefast train` has.
REGISTRIES: list[dict[str, Any]] = [
    *(likelihoods._base._registry, likelihoods._base._rows, likelihoods._base._defaults),
    *(FORMULAS, backends.USER_FORMS),
    *(registry.entries for registry in (MODELS, OBJECTIVES, BACKBONES)),
]


# Variables that this library, torch, Triton and Python read; others are other libraries' own.
OURS = ("VAEFAST_", "TORCH", "TRITON_", "OMP_", "CUDA_", "PYTHON", "PATH", "HOME")


def _process() -> dict[str, Any]:
    """What a test must leave as it found it, for those after it in its process."""
    core = sys.modules.get("vaefast._C")
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "grad mode": torch.is_grad_enabled(),
        "the backend": backends.asked(),
        "vaefast._C": id(core),
        "the instruction set": core.cpu_capability() if core is not None else None,
        "the working directory": os.getcwd(),
        # setuptools puts a folder of its own there when it is first imported.
        "sys.path": [p for p in sys.path if not p.endswith("_vendor")],
        **{f"${k}": v for k, v in os.environ.items() if k.startswith(OURS)},
    }


@pytest.fixture(autouse=True)
def _leaves_no_trace() -> Iterator[None]:
    before = _process()
    yield
    after = _process()
    # What is in front hides a package; behind it a library may put a folder of its own.
    after["sys.path"] = after["sys.path"][: len(before["sys.path"])]
    # A variable that is new is a library's, which sets it when it is first imported.
    own = [name for name in after if name.startswith("$VAEFAST_")]
    changed = [name for name in (*before, *own) if before.get(name) != after.get(name)]
    assert not changed, f"the test has changed {', '.join(changed)}, and left it so"


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    """What a test registers is forgotten after it: no other's walk may depend on their order."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, known in zip(REGISTRIES, before, strict=True):
        if registry != known:
            registry.clear()
            registry.update(known)


@pytest.fixture(autouse=True)
def _seed_and_threads() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
