"""The emulated GPU's threads (csrc/cuda/emulated.h): their order, barriers and shared memory, and
that a race between two of them is an error. The kernels themselves are tests/cuda/races.py's."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
pytestmark = [
    pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not here"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fibers by ucontext"),
]
THREADS = 64
KERNELS = """
#include "cuda/emulated.h"

#include <stdexcept>
#include <string>

using namespace vaefast;

struct Call {
  int* out;
  int kind;
};

static thread_local int ran;

// A race, which is what is looked at.
__attribute__((no_sanitize("thread"))) static void log(int* out, int i) { out[ran++ % 64] = i; }

static void kernel(const void* given) {
  const Call& call = *static_cast<const Call*>(given);
  __shared__ int shared[64];
  const int i = static_cast<int>(threadIdx.x);
  switch (call.kind) {
    case 0:  // Which thread was the how many-th.
      if (blockIdx.x == 0) log(call.out, i);
      break;
    case 1:  // The neighbour's number, by shared memory.
    case 2:  // The same without a barrier.
      shared[i] = 10 * i + call.kind;
      if (call.kind == 1) __syncthreads();
      call.out[i] = shared[(i + 1) % 64] - call.kind;
      break;
    case 3:  // Within a warp, whose barrier is enough.
    case 4:  // Without it.
      shared[i] = 10 * i;
      if (call.kind == 3) __syncwarp();
      call.out[i] = shared[i ^ 1];
      break;
    case 5:  // A warp's sum, by shuffles.
      {
        int sum = i;
        for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
        call.out[i] = sum;
      }
      break;
    case 6:  // Half of a warp waits for the other, which has ended.
      if (i % 32 < 16) __syncwarp();
      break;
    case 7:  // One past what the launch has.
      if (i == 0) static_cast<char*>(emulated::dynamic_shared())[256] = 1;
      break;
    case 8:  // Two threads write one number.
      call.out[0] = 1;
      break;
    case 9:  // Read by all, then written by one behind a barrier; and without it.
    case 10:
      shared[i] = call.out[0];
      if (call.kind == 9) __syncthreads();
      if (i == 5) call.out[0] = 7;
      break;
  }
}

extern "C" const char* launch(int blocks, int kind, int* out) {
  static thread_local std::string said;
  const Call call = {out, kind};
  ran = 0;
  try {
    emulated::run(blocks, 64, 256, kernel, &call);
    return "";
  } catch (const std::exception& error) {
    said = error.what();
    return said.c_str();
  }
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("threads")
    (folder / "kernels.cpp").write_text(KERNELS)
    objects = []
    for source, flags in (
        (folder / "kernels.cpp", ["-fsanitize=thread"]),
        (CSRC / "cuda/emulated.cpp", []),
        (CSRC / "cuda/emulated_accesses.cpp", []),
    ):
        objects.append(folder / f"{source.stem}.o")
        command = [compiler, "-std=c++17", "-O1", "-fPIC", f"-I{CSRC}", *flags]
        done = subprocess.run(
            [*command, "-c", source, "-o", objects[-1]], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]
    built = folder / "threads.so"
    # Without the sanitizer's own library.
    subprocess.run([compiler, "-shared", *objects, "-o", built], check=True)
    made = ctypes.CDLL(str(built))
    made.launch.restype = ctypes.c_char_p
    return made


@pytest.fixture
def run(library, monkeypatch):
    """(kind, order, blocks) -> (what was said, what is written)."""

    def call(kind: int, order: str = "", blocks: int = 1) -> tuple[str, list[int]]:
        monkeypatch.setenv("VAEFAST_EMULATED_ORDER", order)
        out = (ctypes.c_int * THREADS)(*[-1] * THREADS)
        return library.launch(blocks, kind, out).decode(), [*out]

    return call


def test_the_order_of_the_threads(run):
    forward = [*range(THREADS)]
    assert run(0) == run(0, "forward") == ("", forward)
    assert run(0, "reversed") == ("", forward[::-1])
    _, first = run(0, "shuffled:1")
    _, second = run(0, "shuffled:2")
    assert sorted(first) == forward and first != forward and first != second
    assert run(0, "shuffled:1")[1] == first
    assert run(0, "none") == ("", [-1] * THREADS)
    assert "got sideways" in run(0, "sideways")[0]


ORDERS = ["forward", "reversed", "shuffled:3", "interleaved:4"]


@pytest.mark.parametrize("order", ORDERS)
def test_barriers_and_shuffles(run, order):
    for blocks in (1, 3):
        assert run(1, order, blocks) == ("", [(10 * i + 10) % 640 for i in range(THREADS)])
        assert run(3, order, blocks) == ("", [10 * (i ^ 1) for i in range(THREADS)])
        sums = [sum(range(32)), sum(range(32, 64))]
        assert run(5, order, blocks) == ("", [sums[i // 32] for i in range(THREADS)])
        assert run(9, order, blocks)[0] == ""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [2, 4, 8, 10])
def test_a_race_is_an_error_in_any_order(run, kind, order):
    said, _ = run(kind, order)
    assert "a race in block 0" in said and "no barrier between" in said


def test_another_order_shows_a_missing_barrier_in_what_is_computed(run):
    """Also where nobody looks at accesses."""
    right = run(1)[1]
    wrong = [run(2, order)[1] != right for order in ("forward", "reversed", "shuffled:3")]
    assert all(wrong[:1]) and any(wrong)


def test_what_waits_for_ever_and_what_writes_past_the_end(run):
    assert "waits for its warp" in run(6)[0]
    assert "past a block's shared memory" in run(7)[0]
    assert run(1)[0] == ""
