"""CUDA's `mmd` on the CPU: where distances and gradients are products of the tensor cores, and
where differences, against float64. The tensor cores' sums are cut as the worst of them do."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import one_kernel
import pytest
import torch
from one_kernel import CSRC, MARKS
from torch import Tensor

from vaefast.backends._options import MmdOptions
from vaefast.ops.mmd import denominators

pytestmark = MARKS
CALL = """
#include "cuda/kernels.h"
#include "cuda/mma.cuh"

using namespace vaefast;

extern "C" int64_t call(int64_t n, int64_t m, int64_t dims, int wide, int rbf, int scales,
                        const double* scale, const double* factors, const void* x, const void* y,
                        void* value, void* grad_x, void* grad_y, void* workspace, int64_t bytes) {
  MmdArgs args;
  args.x_points = n;
  args.y_points = m;
  args.dims = dims;
  args.wide = wide;
  args.x = x;
  args.y = y;
  args.rbf = rbf;
  args.scales = scales;
  for (int s = 0; s < scales; ++s) args.scale[s] = scale[s];
  args.factor_xx = factors[0];
  args.factor_yy = factors[1];
  args.factor_xy = factors[2];
  args.constant = factors[3];
  args.value = value;
  args.grad_x = grad_x;
  args.grad_y = grad_y;
  if (workspace == nullptr) return cuda::mmd_workspace(args);
  cuda::Place place;
  place.workspace = workspace;
  place.bytes = bytes;
  cuda::mmd(args, place);
  return 0;
}

struct Matrices {
  const float *a, *b;
  float* sums;
};

static void product(const void* given) {
  const Matrices& m = *static_cast<const Matrices*>(given);
  const int lane = static_cast<int>(threadIdx.x), row = lane / 4, place = lane % 4;
  isa_cuda::Tf32Left a;
  isa_cuda::Tf32Right b;
  isa_cuda::Sums16x8 sums;
  for (int i = 0; i < 4; ++i) {
    a.v[i] = isa_cuda::to_bits(m.a[(row + i % 2 * 8) * 8 + place + i / 2 * 4]);
    sums.v[i] = m.sums[(row + i / 2 * 8) * 8 + 2 * place + i % 2];
  }
  for (int i = 0; i < 2; ++i) b.v[i] = isa_cuda::to_bits(m.b[(place + 4 * i) * 8 + row]);
  isa_cuda::multiply_add(a, b, sums);
  for (int i = 0; i < 4; ++i) m.sums[(row + i / 2 * 8) * 8 + 2 * place + i % 2] = sums.v[i];
}

// sums [16, 8] += a [16, 8] b [8, 8].
extern "C" void multiply(const float* a, const float* b, float* sums) {
  const Matrices made = {a, b, sums};
  emulated::run(1, 32, 0, product, &made);
}
"""
LIMIT = "kProducts = 16;"


def build(folder: Path, limit: str = LIMIT) -> ctypes.CDLL:
    """The kernels with another limit of the products."""
    (folder / "cuda").mkdir()
    header = (CSRC / "cuda/mmd_products.cuh").read_text()
    assert header.count(LIMIT) == 1
    (folder / "cuda/mmd_products.cuh").write_text(header.replace(LIMIT, limit))
    made = one_kernel.build(folder, CALL, "mmd", optimise="-O1")
    made.call.restype = ctypes.c_int64
    return made


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("products"))


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """That takes no products."""
    return build(tmp_path_factory.mktemp("differences"), "kProducts = -1;")


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def mmd(
    kernels: ctypes.CDLL,
    x: Tensor,
    y: Tensor,
    kernel: str = "imq",
    scales: tuple[float, ...] | None = None,
    unbiased: bool = True,
    wanted: tuple[bool, bool] = (True, True),
) -> list[Tensor]:
    """The value and the gradients that are wanted."""
    dims = x.shape[1]
    options = MmdOptions(kernel == "rbf", denominators(kernel, scales, dims), unbiased)
    given = [
        torch.tensor(n, dtype=torch.float64)
        for n in (options.scales, options.factors(len(x), len(y)))
    ]
    results = [torch.full((), math.nan, dtype=x.dtype)]
    grads = [
        torch.full_like(t, math.nan) if w else None for t, w in zip((x, y), wanted, strict=True)
    ]
    arguments = [
        *(ctypes.c_int64(n) for n in (len(x), len(y), dims)),
        *(int(x.dtype == torch.float64), int(options.rbf), len(options.scales)),
        *map(pointer, (*given, x, y, results[0], *grads)),
    ]
    room = kernels.call(*arguments, pointer(None), ctypes.c_int64(0))
    workspace = torch.full((room + 64,), 0xFF, dtype=torch.uint8)
    kernels.call(*arguments, pointer(workspace), ctypes.c_int64(room))
    assert (workspace[room:] == 0xFF).all()
    return [*results, *(g for g in grads if g is not None)]


def exact(
    x: Tensor,
    y: Tensor,
    kernel: str = "imq",
    scales: tuple[float, ...] | None = None,
    unbiased: bool = True,
) -> list[Tensor]:
    """The definition in float64."""
    x, y = (t.double().requires_grad_() for t in (x, y))
    total = x.new_zeros(())
    for scale in denominators(kernel, scales, x.shape[1]):
        for a, b, factor in ((x, x, 1), (y, y, 1), (x, y, -2)):
            squared = ((a[:, None] - b) ** 2).sum(-1)
            k = torch.exp(-squared / scale) if kernel == "rbf" else scale / (scale + squared)
            keep = ~torch.eye(len(a), dtype=torch.bool) if a is b and unbiased else slice(None)
            total = total + factor * k[keep].mean()
    return [total.detach(), *torch.autograd.grad(total, (x, y))]


def samples(n: int, m: int, dims: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    make = torch.Generator().manual_seed(n + dims)
    x, y = (torch.randn(k, dims, generator=make, dtype=torch.float64) for k in (n, m))
    return [t.to(dtype) for t in (0.7 * x + 0.3, y)]


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float = 5e-6) -> None:
    for a, b in zip(got, want, strict=True):
        largest = max(1.0, float(b.abs())) if b.dim() == 0 else float(b.abs().max())
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * largest)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


# One pair; parts of tiles; whole ones; 8, 16 and 64 dimensions at a time, and what is left of them.
SHAPES = [
    *[(2, 2, 1), (5, 3, 2), (64, 64, 16), (65, 129, 10), (20, 70, 33), (40, 66, 64)],
    pytest.param((9, 70, 131), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_definition(kernels, shape: tuple[int, int, int], kernel: str) -> None:
    unbiased = sum(shape) % 2 == (kernel == "rbf")
    for dtype, tolerance in ((torch.float32, 5e-6), (torch.float64, 1e-13)):
        x, y = samples(*shape, dtype)
        got = mmd(kernels, x, y, kernel, unbiased=unbiased)
        assert_close(got, exact(x, y, kernel, unbiased=unbiased), tolerance)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)], ids=str)
def test_only_the_wanted_gradients(kernels, wanted: tuple[bool, bool]) -> None:
    x, y = samples(20, 66, 10)
    value, *grads = exact(x, y)
    want = [value, *(g for g, w in zip(grads, wanted, strict=True) if w)]
    assert_close(mmd(kernels, x, y, wanted=wanted), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_was_of_16_bits(kernels, dtype: torch.dtype) -> None:
    x, y = (t.to(dtype).float() for t in samples(65, 40, 10))
    assert_close(mmd(kernels, x, y), exact(x, y))


@pytest.mark.parametrize("scales", [(0.3,), (0.5, 4.0), (0.2, 1.0, 2.0, 3.0)])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_scales(kernels, kernel: str, scales: tuple[float, ...]) -> None:
    x, y = samples(66, 70, 9)
    assert_close(mmd(kernels, x, y, kernel, scales), exact(x, y, kernel, scales))


@pytest.mark.slow
def test_products_are_taken_where_nothing_is_lost(kernels, differences) -> None:
    """Seen from the middle of a tile: far from 0 too."""
    for dims in (16, 40, 100):
        x, y = samples(64, 70, dims)
        for away in (0.0, 1e3):
            got = mmd(kernels, x + away, y + away)
            assert not same(got, mmd(differences, x + away, y + away))
            assert_close(got, exact(x + away, y + away))


# Two samples, and the scales of the kernel.
def _hard(name: str) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    x, y = samples(70, 66, 16)
    return {
        # Norms of 100 scales and more.
        "narrow": (x, y, (0.005,)),
        "one narrow scale": (x, y, (0.005, 1.0)),
        "near each other, far from the middle": (
            1e-2 * x + 10 * (torch.arange(70) % 2)[:, None],
            1e-2 * y + 10 * (torch.arange(66) % 2)[:, None],
            (1e-3,),
        ),
        "far from the other sample": (x, y + 50, (0.1,)),
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["narrow", "one narrow scale", "near each other, far from the middle"]
)
def test_differences_are_taken_elsewhere(kernels, differences, name: str) -> None:
    x, y, scales = _hard(name)
    got = mmd(kernels, x, y, scales=scales)
    assert same(got, mmd(differences, x, y, scales=scales))
    assert_close(got, exact(x, y, scales=scales))


@pytest.mark.slow
def test_a_tile_is_judged_by_itself(kernels, differences) -> None:
    """Each of two samples by products with itself, and by differences with the other."""
    x, y, scales = _hard("far from the other sample")
    got = mmd(kernels, x, y, scales=scales)
    assert not same(got, mmd(differences, x, y, scales=scales))
    assert_close(got, exact(x, y, scales=scales))


@pytest.mark.slow
def test_the_limit_is_needed(tmp_path: Path) -> None:
    """Products everywhere lose what the tests above ask for."""
    wrong = build(tmp_path, "kProducts = 1e9;")
    x, y, scales = _hard("near each other, far from the middle")
    with pytest.raises(AssertionError):
        assert_close(mmd(wrong, x, y, scales=scales), exact(x, y, scales=scales))


@pytest.mark.parametrize("dims", [3, 64])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_one_pair_at_the_limit(kernels, kernel: str, dims: int) -> None:
    """Of one pair nothing averages out: points that are as far from their middle as products are
    taken for, near each other and far apart. mmd_products.cuh's bound is 6e-4 (each scale has its
    own part of it), and 2e-5 by random errors."""
    least = min(denominators(kernel, None, dims))
    make = torch.Generator().manual_seed(dims)
    worst = 0.0
    for gap in (0.0, 1e-3, 1e-1, 1.0, 7.9):
        for _ in range(2):
            directions = torch.randn(2, dims, generator=make)
            a, b = directions / directions.norm(dim=1, keepdim=True)
            x = (3.99 * math.sqrt(least) * a)[None]
            # y within the limit as well, `gap` scales away.
            y = x - gap * math.sqrt(least) * (b if gap < 1 else a)
            points = torch.cat([x, -x])
            got = mmd(kernels, points, y, kernel, unbiased=False)
            want = exact(points, y, kernel, unbiased=False)
            worst = max(worst, abs(float(got[0]) - float(want[0])))
    assert worst < 4e-5


def test_points_that_are_the_same(kernels) -> None:
    x, y = samples(70, 130, 16)
    x[10:40] = x[0]
    y[:50] = x[0]
    for unbiased in (True, False):
        assert_close(mmd(kernels, x, y, unbiased=unbiased), exact(x, y, unbiased=unbiased))
    # All of them: no distance at all, and no gradient.
    same_points = [x[:1].expand(n, 16).contiguous() for n in (70, 66)]
    value, *grads = mmd(kernels, *same_points, unbiased=False)
    assert abs(float(value)) < 1e-6
    assert all(float(g.abs().max()) < 1e-6 for g in grads)


def test_what_is_not_a_number(kernels) -> None:
    x, y = samples(70, 66, 16)
    for bad in (math.nan, math.inf):
        broken = x.clone()
        broken[3, 5] = bad
        value = mmd(kernels, broken, y)[0]
        assert torch.isnan(value) if math.isnan(bad) else torch.isfinite(value)
    for away in (1e10, 1e18):
        assert all(torch.isfinite(t).all() for t in mmd(kernels, x + away, y))


def test_the_same_bits_in_any_order_of_the_threads(
    kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = samples(70, 130, 20)
    want = mmd(kernels, x, y)
    for order in ("reversed", "shuffled:1"):
        monkeypatch.setenv("VAEFAST_EMULATED_ORDER", order)
        assert same(mmd(kernels, x, y), want)


def test_the_emulated_tensor_cores(kernels) -> None:
    make = torch.Generator().manual_seed(0)
    a, b, sums = (torch.randn(*s, generator=make) for s in ((16, 8), (8, 8), (16, 8)))

    def multiply(a: Tensor, b: Tensor, sums: Tensor) -> Tensor:
        result = sums.clone()
        kernels.multiply(pointer(a), pointer(b), pointer(result))
        return result

    def cut(t: Tensor) -> Tensor:
        return (t.view(torch.int32) & ~0x1FFF).view(torch.float32)

    want = cut(a).double() @ cut(b).double() + sums
    torch.testing.assert_close(multiply(a, b, sums).double(), want, rtol=0, atol=4e-6)
    # Whole numbers are exact, and what is below 24 bits of the largest is cut, not rounded.
    whole = [torch.randint(-2000, 2001, t.shape, generator=make).float() for t in (a, b, sums)]
    assert torch.equal(multiply(*whole), (whole[0].double() @ whole[1].double() + whole[2]).float())
    small = torch.zeros(16, 8)
    small[:, 0] = 2.0**-24
    for sign in (1.0, -1.0):
        ones = torch.full((16, 8), sign)
        assert torch.equal(multiply(small, sign * torch.ones(8, 8), ones), ones)
