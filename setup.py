"""Builds vaefast._C with CMake; all other metadata is in pyproject.toml.

A machine without a working compiler still gets an install: vaefast/_build.json then says why there
is no native core. VAEFAST_REQUIRE_NATIVE=1 or VAEFAST_CUDA=1 turn that into an error.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
COMPILER_ENV = ("CC", "CXX", "CUDACXX", "CUDAHOSTCXX", "CXXFLAGS", "CUDAFLAGS", "LDFLAGS")

# What CMake prints where it cannot configure, the reason, and what `vaefast info` tells to install.
CAUSES = (
    (r"CMake [\d.]+ or higher is required", "CMake is too old", "cmake"),
    (r"Could NOT find Python\b", "Python's headers were not found", "headers"),
    (r"CMAKE_CXX_COMPILER|CXXCompiler\.cmake", "no working C++17 compiler was found", "compiler"),
)


class BuildFailed(Exception):
    """The reason in one line, what the tool printed, and the name of what was missing, or None."""

    def __init__(self, reason: str, log: str, missing: str | None = None) -> None:
        super().__init__(f"{reason}\n{log}".strip())
        self.reason, self.log, self.missing = reason, log, missing


def find_tool(name: str) -> str:
    """The program of the package `name` beside setuptools, or else of the PATH."""
    # That of the PATH may be another version, in which case an isolated and a plain install would
    # each find that the other's objects are not its own: Ninja 1.11 starts over on 1.13's log.
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    # The program itself before a script that calls it.
    named = sorted((file for file in files if file.stem == name), key=lambda f: ".." in f.parts)
    for path in (Path(str(file.locate())) for file in named):
        if path.is_file() and os.access(path, os.X_OK):
            return str(path.resolve())
    found = shutil.which(name)
    if not found:
        raise BuildFailed(f"{name} was not found", "", name)
    return found


def find_pybind11(directory: Path) -> Path:
    """pybind11's CMake folder, of a copy in `directory` where it is a Python package."""
    try:
        import pybind11
    except ImportError:
        raise BuildFailed("pybind11 was not found", "", "pybind11") from None
    package, cmake = Path(pybind11.__file__).parent, Path(pybind11.get_cmake_dir())
    if package not in cmake.parents:
        return cmake
    # An isolated build has it in another folder each time, and another path compiles anew.
    copy = directory / f"pybind11-{pybind11.__version__}"
    if not copy.exists():
        part = copy.with_name(f"{copy.name}.{os.getpid()}")
        shutil.copytree(package, part, ignore=shutil.ignore_patterns("__pycache__"))
        os.replace(part, copy)
    return copy / cmake.relative_to(package)


def run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if done.returncode == 0:
        return
    if "--build" in command:
        raise BuildFailed("the sources did not compile", done.stdout)
    for pattern, reason, missing in CAUSES:
        if re.search(pattern, done.stdout):
            raise BuildFailed(reason, done.stdout, missing)
    raise BuildFailed("CMake could not configure the build", done.stdout)


def build_directory() -> Path:
    # CMake keeps the compiler of its first run: another compiler needs another directory.
    found = [shutil.which(name) for name in ("c++", "g++", "clang++", "cl", "nvcc")]
    state = repr([os.environ.get(name) for name in COMPILER_ENV] + found)
    digest = hashlib.sha256(state.encode()).hexdigest()[:8]
    return ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{digest}"


def compile_native(version: str, cuda: str) -> Path:
    """The path of the built module."""
    cmake = find_tool("cmake")
    directory = build_directory()
    configure = [
        *(cmake, "-S", str(ROOT / "csrc"), "-B", str(directory)),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={find_pybind11(directory)}",
        f"-DVAEFAST_VERSION={version}",
        f"-DVAEFAST_CUDA={cuda}",
    ]
    # On Windows, Ninja finds cl only inside a developer prompt; Visual Studio's generator always.
    if sys.platform != "win32" or shutil.which("cl"):
        # Named on every run: under build isolation last time's ninja is gone.
        configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}"]
    run(configure)
    run([cmake, "--build", str(directory), "--config", "Release", "--parallel", "--target", "_C"])
    return next(directory.rglob("_C" + sysconfig.get_config_var("EXT_SUFFIX")))


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        asked = os.environ.get("VAEFAST_CUDA") or "auto"
        required = asked == "1" or os.environ.get("VAEFAST_REQUIRE_NATIVE") == "1"
        # `vaefast info` reads it. A reason beside "native": true is why there are no CUDA kernels.
        record: dict[str, object] = {"native": False, "reason": None, "missing": None, "log": []}
        for cuda in ("auto", "0") if asked == "auto" else (asked,):
            try:
                shutil.copy2(compile_native(self.distribution.get_version(), cuda), target)
                record["native"] = True
                break
            except (BuildFailed, OSError) as error:
                if required:
                    raise
                if not isinstance(error, BuildFailed):
                    error = BuildFailed(str(error), "")
                log = error.log.splitlines()[-40:]
                record |= {"reason": error.reason, "missing": error.missing, "log": log}
                # Nobody asked for CUDA: where its sources failed, try without it.
                if "vaefast_cuda" not in error.log:
                    break
        if record["reason"]:
            what = "CUDA kernels" if record["native"] else "the native core"
            print(f"vaefast: installing without {what}: {record['reason']}", file=sys.stderr)
        text = json.dumps(record, indent=1) + "\n"
        (target.parent / "_build.json").write_text(text)
        if self.editable_mode:
            (ROOT / "vaefast" / "_build.json").write_text(text)
            (ROOT / "vaefast" / target.name).unlink(missing_ok=True)


class BuildPython(build_py):
    def run(self) -> None:
        # Otherwise a module that was deleted or renamed is installed from the last build's copy.
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "vaefast", ignore_errors=True)
        super().run()


setup(
    # No sources: CMake knows them. `optional`: an editable install may find no file to link.
    ext_modules=[Extension("vaefast._C", sources=[], optional=True)],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)
