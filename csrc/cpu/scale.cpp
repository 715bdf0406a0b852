// A stored gradient times the upstream one, in place; nothing is touched where that is 1.
#include "cpu/kernels.h"
#include "cpu/tile.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class T>
void multiply(const ScaleArgs& args) {
  const View& up = args.upstream;
  // An upstream gradient of no elements has no address.
  if (args.shape.rows == 0 || args.shape.cols == 0) return;
  if (up.col_stride == 0 && up.row_stride == 0) {
    T value = T(0);
    widen(up.dtype, up.data, &value, 1);
    if (value == T(1)) return;
  }
  const Tiling tiling(args.shape, kTile<T>);
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  {
    T stored[kTile<T>], upstream[kTile<T>];
#pragma omp for schedule(static) nowait
    for (int64_t index = 0; index < tiling.count; ++index) {
      const Tile tile = tiling.tile(index);
      const int64_t start = tile.start(args.shape), n = tile.size();
      const T* by = load(up, tile, upstream);
      T* grad = destination(args.grad, start, stored);
      if (grad == stored)
        widen(args.grad.dtype,
              static_cast<char*>(args.grad.data) + start * size_of(args.grad.dtype), stored, n);
      for (int64_t i = 0; i < n; ++i) grad[i] *= by[i];
      finish(args.grad, start, n, grad);
    }
  }
}

}  // namespace

bool scale(const ScaleArgs& args) {
  if (args.grad.dtype == DType::kF64) {
    multiply<double>(args);
  } else {
    multiply<float>(args);
  }
  return true;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
