"""Builds vaefast._C with CMake; all other metadata is in pyproject.toml.

A machine without a working compiler still gets an install: vaefast/_build.json then says why there
is no native core. VAEFAST_REQUIRE_NATIVE=1 or VAEFAST_CUDA=1 turn that into an error.
"""

import hashlib
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


class BuildFailed(Exception):
    """Its arguments: the reason, in one line, and what the tool printed."""


def find_tool(name: str) -> str:
    # A venv that is used without being activated has its scripts off the PATH.
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts")) or name


def run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if "--build" in command:
        reason = "the sources did not compile"
    elif re.search(r"CMAKE_CXX_COMPILER|CXXCompiler\.cmake", done.stdout):
        reason = "no working C++17 compiler was found"
    else:
        reason = "CMake could not configure the build"
    if done.returncode != 0:
        raise BuildFailed(reason, done.stdout)


def build_directory() -> Path:
    # CMake keeps the compiler of its first run: another compiler needs another directory.
    found = [shutil.which(name) for name in ("c++", "g++", "clang++", "cl", "nvcc")]
    state = repr([os.environ.get(name) for name in COMPILER_ENV] + found)
    digest = hashlib.sha256(state.encode()).hexdigest()[:8]
    return ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{digest}"


def compile_native(version: str, cuda: str) -> Path:
    """The path of the built module."""
    import pybind11

    cmake = find_tool("cmake")
    directory = build_directory()
    configure = [
        *(cmake, "-S", str(ROOT / "csrc"), "-B", str(directory)),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
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
        record: dict[str, object] = {"native": False, "reason": None, "log": []}
        for cuda in ("auto", "0") if asked == "auto" else (asked,):
            try:
                shutil.copy2(compile_native(self.distribution.get_version(), cuda), target)
                record["native"] = True
                break
            except (BuildFailed, ImportError, OSError) as error:
                if required:
                    raise
                reason, log = error.args if isinstance(error, BuildFailed) else (str(error), "")
                record |= {"reason": reason, "log": log.splitlines()[-40:]}
                # Nobody asked for CUDA: where its sources failed, try without it.
                if "vaefast_cuda" not in log:
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
