// Noise by itself: what `vaefast.random` gives.
#include "cpu/noise.h"

#include "cpu/kernels.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class T>
void fill(const NoiseArgs& args) {
  const Tiling tiling(args.shape, kTile<T>);
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  {
    NoiseBuffer<T> buffer;
#pragma omp for schedule(static) nowait
    for (int64_t index = 0; index < tiling.count; ++index) {
      const Tile tile = tiling.tile(index);
      const T* values =
          tile_noise(args.state, args.shape, tile, 0, args.purpose, args.normal, buffer);
      const int64_t start = tile.start(args.shape);
      if (args.out.nontemporal) {
        finish(args.out, start, tile.size(), values);
      } else {
        narrow(values, args.out.dtype,
               static_cast<char*>(args.out.data) + start * size_of(args.out.dtype), tile.size());
      }
    }
    nontemporal_fence();
  }
}

}  // namespace

bool noise(const NoiseArgs& args) {
  if (args.out.dtype == DType::kF64) {
    fill<double>(args);
  } else {
    fill<float>(args);
  }
  return true;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
