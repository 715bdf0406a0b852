"""Compiles what a call would launch, for an architecture that need not be here."""

import contextlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

_CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"


class Compiled(NamedTuple):
    """One launch: the kernel, its programs and warps, and what its cubin holds."""

    kernel: str
    programs: int
    warps: int
    registers: int
    stack: int
    sass: str
    cubin: bytes

    def count(self, instruction: str) -> int:
        return len(re.findall(rf"\b{re.escape(instruction)}\b", self.sass))


class _Driver:
    """What the JIT asks a driver for, without a device."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        # The key of the kernels' cache.
        return f"sm_{self.arch}"

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def _recorded(arch, found):
    def launcher(self, grid):
        def compile_only(*args, **meta):
            kernel = self.run(*args, grid=grid, warmup=True, **meta)
            found.append((self.fn.__name__, grid[0], kernel))

        return compile_only

    launch, driver = JITFunction.__getitem__, triton.runtime.driver._active
    JITFunction.__getitem__ = launcher
    triton.runtime.driver.set_active(_Driver(arch))
    try:
        yield
    finally:
        JITFunction.__getitem__ = launch
        # Its reset would look for a driver, and there may be none.
        triton.runtime.driver._active = driver


def launches(call, arch):
    """The launches that `call` would make on an sm_`arch`, compiled."""
    found = []
    with _recorded(arch, found):
        call()
    return [_read(name, programs, kernel) for name, programs, kernel in found]


def _read(name, programs, kernel):
    cubin = kernel.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("-res-usage", file.name)
        sass = _run("-sass", file.name)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return Compiled(name, programs, kernel.metadata.num_warps, registers, stack, sass, cubin)


def _run(*arguments):
    return subprocess.run(
        [_CUOBJDUMP, *arguments], capture_output=True, text=True, check=True
    ).stdout
