"""One of the CUDA kernels as a loop on the CPU, in a plain run: `sample_kl`. All of them, by the
operators' own tests, are `test_cuda_build.py`'s, which takes minutes to build them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import one_kernel
import pytest
import torch
from one_kernel import MARKS
from tolerances import TABLE

import vaefast as vf

pytestmark = MARKS
# Dense [rows, cols] operands, `segments` rows to a sample; no prior where its pointers are null.
CALL = """
#include "cuda/kernels.h"

using namespace vaefast;

static View view(const void* data, DType dtype, const Shape& shape) {
  View made;
  made.data = data;
  made.dtype = dtype;
  made.mod = shape.rows;
  made.row_stride = shape.cols;
  made.col_stride = 1;
  return made;
}

extern "C" int64_t room(int64_t rows, int64_t cols, int64_t segments, int reduce) {
  return cuda::workspace({rows, cols, segments}, static_cast<Reduce>(reduce), false, rows);
}

extern "C" void call(int64_t rows, int64_t cols, int64_t segments, int reduce, int dtype,
                     int64_t samples, double factor, const void* mu, const void* scale,
                     const void* prior_mu, const void* prior_scale, const int64_t* state, void* z,
                     void* kl, void* workspace, int64_t bytes) {
  SampleKlArgs args;
  args.shape = {rows, cols, segments};
  const DType stored = static_cast<DType>(dtype);
  args.mu = view(mu, stored, args.shape);
  args.scale = view(scale, stored, args.shape);
  args.prior_mu = view(prior_mu, stored, args.shape);
  args.prior_scale = view(prior_scale, stored, args.shape);
  args.state.words = state;
  args.samples = samples;
  args.factor = factor;
  args.reduce = static_cast<Reduce>(reduce);
  args.wide = stored == DType::kF64;
  args.z.data = z;
  args.z.dtype = stored;
  args.kl = kl;
  cuda::Place place;
  place.workspace = workspace;
  place.bytes = bytes;
  cuda::sample_kl(args, place);
}
"""
# As csrc/core/args.h numbers them.
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
REDUCE = {"none": 1, "sample": 2, "dim": 3, "sum": 4}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return one_kernel.build(tmp_path_factory.mktemp("emulated"), CALL, "sample_kl", "totals")


# Batch, rows of a sample, columns: one element, parts of vectors, several units of work to a row,
# partial sums of many rows.
SHAPES = [(1, 1, 1), (3, 5, 7), (2, 1, 4099), (41, 2, 40)]


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_reference(
    kernel: ctypes.CDLL,
    shape: tuple[int, int, int],
    reduction: str,
    dtype: torch.dtype,
    prior: bool,
) -> None:
    samples = 3 if prior else 1
    given = [torch.randn(shape).to(dtype) for _ in range(4 if prior else 2)]
    names = ("mu", "scale", "prior_mu", "prior_scale")
    settings = {"seed": 7, "num_samples": samples, "reduction": reduction}
    with vf.backend("reference"):
        want = vf.sample_kl(**dict(zip(names, given, strict=False)), **settings)
    z, kl = (torch.full_like(t, torch.nan) for t in want)
    state = torch.tensor([7, 0])
    grid = (shape[0] * shape[1], shape[2], shape[1])
    room = _call(kernel.room, ctypes.c_int64)(*map(ctypes.c_int64, grid), REDUCE[reduction])
    # What is written past its end shows it.
    workspace = torch.full((room + 64,), 0xFF, dtype=torch.uint8)
    pointers = [t.data_ptr() for t in given] + [None] * (4 - len(given))
    pointers += [t.data_ptr() for t in (state, z, kl, workspace)]
    kernel.call(
        *map(ctypes.c_int64, grid),
        *(REDUCE[reduction], DTYPES[dtype], ctypes.c_int64(samples)),
        # "dim" is a mean over the batch.
        ctypes.c_double(1 / shape[0] if reduction == "dim" else 1.0),
        *map(ctypes.c_void_p, pointers),
        ctypes.c_int64(room),
    )
    assert (workspace[room:] == 0xFF).all()
    single = dtype != torch.float64
    step = 0.0 if dtype == torch.float64 else torch.finfo(dtype).eps
    tolerance = TABLE[torch.float32].arithmetic if single else 1e-12
    largest = max(1.0, want[0].abs().max().item())
    torch.testing.assert_close(z, want[0], rtol=max(step, 1e-12), atol=tolerance * largest)
    torch.testing.assert_close(kl, want[1], rtol=tolerance, atol=tolerance)


def _call(function: Callable[..., int], result: type) -> Callable[..., int]:
    function.restype = result  # type: ignore[attr-defined]
    return function
