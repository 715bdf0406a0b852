"""How many instructions a call takes, counted by valgrind's callgrind: the same number at each run,
whatever else the machine does, where times of a shared machine swing by more than what is asked.

A count is no time: a kernel that waits for memory takes as long with a few instructions more.
"""

from __future__ import annotations

import ctypes
import gc
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# The requests are instructions that do nothing but under valgrind.
_REQUESTS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char* name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""
_PREFIX = "counts"


def command(program: list[str], folder: Path) -> list[str]:
    """`program` under callgrind, whose counts go to `folder`. There are no AVX-512 instructions
    under valgrind: it hides them from the program."""
    source, library = folder / "requests.c", folder / "requests.so"
    source.write_text(_REQUESTS)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet"]
    return [*valgrind, f"--callgrind-out-file={folder / _PREFIX}", *program]


class Counter(NamedTuple):
    """Counts calls by name, in a process that was started by `command`."""

    requests: ctypes.CDLL

    @classmethod
    def of(cls, folder: Path) -> Counter:
        return cls(ctypes.CDLL(str(folder / "requests.so")))

    def count(self, name: str, run: Callable[[], object], calls: int) -> None:
        # The interpreter makes code that runs often quicker; that is behind it then.
        start, warm = time.perf_counter(), 0
        while warm < 3 or (warm < 50 and time.perf_counter() - start < 1):
            run()
            warm += 1
        gc.collect()
        gc.disable()
        self.requests.begin()
        for _ in range(calls):
            run()
        self.requests.end(f"{calls} {name}".encode())
        gc.enable()


def counted(folder: Path) -> dict[str, float]:
    """Instructions per call by name, of a process that has ended."""
    found = {}
    for file in folder.glob(f"{_PREFIX}.*"):
        text = file.read_text()
        name = re.search(r"^desc: Trigger: Client Request: (\d+) (.*)$", text, re.MULTILINE)
        total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
        if name and total:
            found[name[2]] = int(total[1]) / int(name[1])
    if not found:
        sys.exit(f"callgrind left no counts in {folder}")
    return found
