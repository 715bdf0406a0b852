"""What an installation tells of itself: remedies that work for it, and why a build gave no core."""

import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from program import python

from vaefast import _install, backends
from vaefast.cli.info import missing

ROOT = Path(__file__).resolve().parent.parent


class Distribution:
    def __init__(self, record):
        self.record = record

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.record and json.dumps(self.record)


@pytest.fixture
def install(monkeypatch):
    """Makes the library one that pip installed from `record`."""

    def set_record(record):
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution(record))

    return set_record


def test_a_remedy_is_for_the_way_that_it_was_installed(tmp_path, install):
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()
    folder = {"url": checkout.as_uri(), "dir_info": {}}
    install(folder)
    assert _install.command("triton") == f"cd '{checkout}' && pip install \".[triton]\""
    rebuilt = f"cd '{checkout}' && pip install --force-reinstall --no-deps ."
    assert _install.command(rebuild=True) == rebuilt
    install({**folder, "dir_info": {"editable": True}})
    assert _install.command("demo").endswith('&& pip install -e ".[demo]"')

    wheel, sdist = tmp_path / "vaefast-0.1.0.whl", tmp_path / "vaefast-0.1.0.tar.gz"
    for archive in (wheel, sdist):
        archive.touch()
        install({"url": archive.as_uri(), "archive_info": {}})
        assert _install.command("demo") == f'pip install "{archive}[demo]"'
    want = f"pip install --force-reinstall --no-deps --no-cache-dir {sdist}"
    assert _install.command(rebuild=True) == want
    elsewhere = "in a checkout of vaefast: pip install "
    install({"url": wheel.as_uri(), "archive_info": {}})
    assert _install.command(rebuild=True) == f"{elsewhere}--force-reinstall --no-deps ."
    install({"url": (tmp_path / "gone").as_uri(), "dir_info": {}})
    assert _install.command("demo") == f'{elsewhere}".[demo]"'

    install({"url": "https://example.org/vaefast", "vcs_info": {"vcs": "git"}})
    assert _install.command("demo") == (
        'pip install "vaefast[demo] @ git+https://example.org/vaefast"'
    )
    install(None)
    assert _install.command("demo") == 'pip install "vaefast[demo]"'


def test_a_checkout_that_is_not_installed_is_its_own_source(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nothing)
    root = Path(_install.__file__).resolve().parent.parent
    if (root / "pyproject.toml").exists():
        assert _install.command("demo") == f'cd {root} && pip install ".[demo]"'


@pytest.mark.parametrize("tool", ["compiler", "headers", "cmake", "ninja", "pybind11", None])
def test_the_tool_that_was_missing_is_the_one_to_install(tool):
    facts = {"native": {"missing": "no module"}, "backends": {"cpu": {}}, "triton": "3"}
    text = "\n".join(missing(facts, {"reason": "why", "missing": tool, "log": ["said so"]}))
    names = {
        "compiler": "apt install g++",
        "headers": "apt install python3-dev",
        "cmake": "pip install cmake",
        "ninja": "pip install ninja",
        "pybind11": "pip install pybind11",
    }
    for name, remedy in names.items():
        assert (remedy in text) == (name == tool)
    assert "(why)" in text
    assert "| said so" in text
    assert _install.command(rebuild=True) in text


def test_triton_that_is_missing_has_its_remedy_in_the_table(monkeypatch):
    from typer.testing import CliRunner

    from vaefast.cli import info as command
    from vaefast.cli.app import app

    def absent(name):
        raise ImportError(f"No module named {name!r}")

    with monkeypatch.context() as patch:
        patch.setattr(backends.importlib, "import_module", absent)
        cause = backends._triton_cause.__wrapped__("cuda")
    assert cause.endswith(_install.command("triton"))
    facts = {**command.vaefast.info(), "serves": {"cuda": "reference"}}
    facts["backends"] = {"cuda": {"native": "not [built]", "triton": cause}}
    monkeypatch.setattr(command.vaefast, "info", lambda: {**facts, "triton": None})
    monkeypatch.setattr(command.console, "_width", 400)
    output = CliRunner().invoke(app, ["info"]).output
    assert output.count("[triton]") == 2
    assert "not [built]" in output


LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def test_every_file_that_the_docs_link_to_is_in_the_sdist():
    taken = re.findall(r"^(graft|include) (.+)$", (ROOT / "MANIFEST.in").read_text(), re.M)
    grafted = [name for kind, names in taken if kind == "graft" for name in names.split()]
    included = {name for kind, names in taken if kind == "include" for name in names.split()}
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    seen = 0
    for document in documents:
        for link in LINK.findall(document.read_text()):
            target = (document.parent / link).resolve()
            assert target.exists(), f"{document.name} links to {link}"
            path = target.relative_to(ROOT)
            assert path.parts[0] in grafted or str(path) in included, f"the sdist lacks {path}"
            seen += 1
    assert seen > 20


def blocked(*names):
    """A program's first lines that hide packages from it."""
    return f"import sys; sys.modules |= dict.fromkeys({names!r}); "


def test_without_torch_one_line_says_so():
    code = blocked("torch") + "from vaefast_command import main; main()"
    done = subprocess.run(python(code, "--help"), capture_output=True, text=True, cwd="/")
    assert done.returncode == 2
    assert done.stdout == ""
    line = "vaefast needs PyTorch, which is not installed: pip install torch\n"
    assert done.stderr == f"vaefast: {line}"
    code = blocked("torch") + "import vaefast"
    done = subprocess.run(python(code), capture_output=True, text=True, cwd="/")
    assert done.returncode == 1
    assert done.stderr.endswith(f"ModuleNotFoundError: {line}")
    assert done.stderr.count("Traceback") == 1


@pytest.fixture
def setup_py(monkeypatch):
    """The names of setup.py, which is not run."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **settings: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def test_a_build_takes_the_tools_of_its_environment(setup_py, tmp_path, monkeypatch):
    for name in ("ninja", "cmake"):
        pytest.importorskip(name)
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("ninja", "cmake"):
        found = Path(setup_py["find_tool"](name))
        assert found.stem == name
        assert found.parent != tmp_path

    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    assert setup_py["find_tool"]("ninja") == str(tmp_path / "ninja")
    (tmp_path / "ninja").unlink()
    with pytest.raises(setup_py["BuildFailed"], match=r"^ninja was not found$") as failure:
        setup_py["find_tool"]("ninja")
    assert failure.value.missing == "ninja"


def test_pybind11_has_one_path_wherever_it_lies(setup_py, tmp_path, monkeypatch):
    pybind11 = pytest.importorskip("pybind11")
    package = Path(pybind11.__file__).parent
    paths = []
    for number in (1, 2):
        elsewhere = tmp_path / str(number) / "pybind11"
        elsewhere.parent.mkdir()
        elsewhere.symlink_to(package)
        with monkeypatch.context() as patch:
            patch.setattr(pybind11, "__file__", str(elsewhere / "__init__.py"))
            cmake = elsewhere / "share" / "cmake" / "pybind11"
            patch.setattr(pybind11, "get_cmake_dir", lambda cmake=cmake: str(cmake))
            paths.append(setup_py["find_pybind11"](tmp_path))
    assert paths[0] == paths[1]
    assert (paths[0] / "pybind11Config.cmake").exists()
    assert (paths[0].parents[2] / "include" / "pybind11" / "pybind11.h").exists()
    monkeypatch.setitem(sys.modules, "pybind11", None)
    with pytest.raises(setup_py["BuildFailed"], match=r"^pybind11 was not found$"):
        setup_py["find_pybind11"](tmp_path)


@pytest.mark.parametrize(
    ("printed", "missing"),
    [
        ("CMake 3.24 or higher is required.  You are running version 3.20", "cmake"),
        ("Could NOT find Python (missing: Development.Module)", "headers"),
        ("No CMAKE_CXX_COMPILER could be found.", "compiler"),
        ("Unknown CMake command", None),
    ],
)
def test_a_failed_configuration_names_what_was_missing(setup_py, printed, missing, capfd):
    command = python(f"import sys; print({printed!r}); sys.exit(1)")
    with pytest.raises(setup_py["BuildFailed"]) as failure:
        setup_py["run"](command)
    assert failure.value.missing == missing
    assert failure.value.log.strip() == printed


def test_a_demo_without_kernels_says_why_it_is_slow(monkeypatch):
    import torch

    from vaefast import _info
    from vaefast.cli.demo import slow

    cpu = torch.device("cpu")
    monkeypatch.setattr(backends, "select", lambda device: "native")
    assert slow(cpu) == []
    monkeypatch.setattr(backends, "select", lambda device: "reference")
    monkeypatch.setattr(backends, "unavailable", lambda name, device: "no module")
    monkeypatch.setattr(_info, "_native", lambda: {"missing": "no module"})
    text = "\n".join(slow(cpu))
    assert "times of plain PyTorch, since no fused kernels serve cpu" in text
    assert _install.command(rebuild=True) in text


def test_programs_of_tests_import_what_is_installed():
    tests = Path(__file__).parent
    starts = re.compile(r"sys\.executable,\s*\"-c\"")
    found = [f.name for f in tests.rglob("*.py") if starts.search(f.read_text())]
    assert found == ["program.py"]
