"""The CUDA kernels' gradients over pairs in more dimensions than a block holds at once, as loops on
the CPU: of several tiles, with shares of their own, of none, and with the weights that differ."""

from __future__ import annotations

import ctypes

import one_kernel
import pytest
import torch
from one_kernel import MARKS
from torch import Tensor

from vaefast.backends._options import Weighing
from vaefast.backends.reference import mixture_log_prob, tc_terms

pytestmark = [pytest.mark.slow, *MARKS, pytest.mark.timeout(300)]
CALL = """
#include "cuda/kernels.h"

#include <cstddef>
#include <vector>

using namespace vaefast;

// What the workspace has past its end is looked at: 0 where nothing was written there.
template <class Run, class Size>
static int guarded(const GaussianMixtureArgs& args, const Run& run, const Size& size) {
  const int64_t bytes = size(args);
  std::vector<unsigned char> room(static_cast<size_t>(bytes) + 64, 0xFF);
  cuda::Place place;
  place.workspace = room.data();
  place.bytes = bytes;
  run(args, place);
  int written = 0;
  for (int i = 0; i < 64; ++i) written += room[static_cast<size_t>(bytes) + i] != 0xFF;
  return written;
}

extern "C" int call(int marginal, int64_t points, int64_t components, int64_t dims, int wide,
                    const void* z, const void* mu, const void* logvar, const void* log_weights,
                    double log_weight, int64_t first, double own, double stratum,
                    const void* upstream, void* values, double* joint, void* marginals,
                    void* grad_z, void* grad_mu, void* grad_logvar, void* grad_log_weights) {
  GaussianMixtureArgs args;
  args.points = points;
  args.components = components;
  args.dims = dims;
  args.wide = wide != 0;
  args.z = z;
  args.mu = mu;
  args.logvar = logvar;
  args.log_weights = log_weights;
  args.log_weight = log_weight;
  args.first = first;
  args.own = own;
  args.stratum = stratum;
  args.upstream = upstream;
  args.values = values;
  args.joint = joint;
  args.marginals = marginals;
  args.grad_z = grad_z;
  args.grad_mu = grad_mu;
  args.grad_logvar = grad_logvar;
  args.grad_log_weights = grad_log_weights;
  if (marginal)
    return guarded(args, cuda::tc_terms, cuda::tc_terms_workspace) +
           guarded(args, cuda::tc_terms_backward, cuda::tc_terms_backward_workspace);
  return guarded(args, cuda::mixture_log_prob, cuda::mixture_log_prob_workspace) +
         guarded(args, cuda::mixture_log_prob_backward, cuda::mixture_log_prob_backward_workspace);
}
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    names = ("tc_terms", "mixture_log_prob", "gaussian_gradients")
    return one_kernel.build(tmp_path_factory.mktemp("pairs"), CALL, *names)


def _run(
    kernel: ctypes.CDLL,
    given: list[Tensor | None],
    upstream: Tensor,
    weighing: Weighing | None,
    log_weight: float = 0.0,
) -> tuple[Tensor, list[Tensor]]:
    """The values and the gradients in what was given."""
    z, mu = given[:2]
    (points, dims), components = z.shape, len(mu)
    values = torch.full_like(upstream, torch.nan)
    joint = torch.full((points,), torch.nan, dtype=torch.float64)
    marginals = torch.full_like(z, torch.nan)
    grads = [None if t is None else torch.full_like(t, torch.nan) for t in given]
    pointers = [None if t is None else t.data_ptr() for t in given]
    outside = (values, joint, marginals if weighing else None, *grads)
    written = kernel.call(
        int(weighing is not None),
        *map(ctypes.c_int64, (points, components, dims)),
        int(z.dtype == torch.float64),
        *map(ctypes.c_void_p, pointers),
        ctypes.c_double(weighing.log_weight if weighing else log_weight),
        ctypes.c_int64(weighing.first if weighing else 0),
        *map(ctypes.c_double, (weighing.own, weighing.stratum) if weighing else (1.0, 1.0)),
        ctypes.c_void_p(upstream.data_ptr()),
        *(ctypes.c_void_p(None if t is None else t.data_ptr()) for t in outside),
    )
    assert written == 0, "written past the workspace"
    return values, [g for g in grads if g is not None]


def _close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    bound = 1e-12 if dtype == torch.float64 else 5e-6
    scale = max(want.abs().max().item(), 1.0)
    torch.testing.assert_close(got.double(), want, rtol=10 * bound, atol=bound * scale)


def _leaves(points: int, components: int, dims: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(points + components + dims)
    shapes = [(points, dims), (components, dims), (components, dims)]
    found = [torch.randn(shape, generator=generator) for shape in shapes]
    # Near enough that every pair's share counts.
    return [(0.3 * t).to(dtype) for t in found]


DIMS = (32, 33, 70)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("special", [False, True])
def test_tc_terms(kernel: ctypes.CDLL, dims: int, special: bool, dtype: torch.dtype) -> None:
    weighing = Weighing(-3.0, 2, 0.5, 3.0) if special else Weighing(-3.0, 0, 1.0, 1.0)
    given = _leaves(70, 75, dims, dtype)
    upstream = torch.randn(3, 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    values, grads = _run(kernel, [*given, None], upstream, weighing)
    wide = [t.double().requires_grad_() for t in given]
    want = tc_terms.tc_terms(*wide, weighing)
    _close(values, want.detach(), dtype)
    for got, truth in zip(grads, torch.autograd.grad(want, wide, upstream.double()), strict=True):
        _close(got, truth, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dims", DIMS)
def test_mixture_log_prob(kernel: ctypes.CDLL, dims: int, dtype: torch.dtype) -> None:
    given = [*_leaves(70, 75, dims, dtype), torch.linspace(-1, 1, 75, dtype=dtype)]
    upstream = torch.randn(70, generator=torch.Generator().manual_seed(1)).to(dtype)
    values, grads = _run(kernel, given, upstream, None)
    wide = [t.double().requires_grad_() for t in given]
    want = mixture_log_prob.mixture_log_prob(*wide)
    _close(values, want.detach(), dtype)
    for got, truth in zip(grads, torch.autograd.grad(want, wide, upstream.double()), strict=True):
        _close(got, truth, dtype)


@pytest.mark.parametrize("dims", DIMS)
def test_components_without_points(kernel: ctypes.CDLL, dims: int) -> None:
    """No tile is met, and the gradients are 0."""
    given = [*_leaves(0, 5, dims, torch.float32), torch.zeros(5)]
    _, grads = _run(kernel, given, torch.zeros(0), None)
    for grad in grads[1:]:
        assert not grad.any()
