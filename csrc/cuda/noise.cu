// Noise by itself: what `vaefast.random` gives.
#include "cuda/launch.cuh"
#include "cuda/noise.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class T, int V>
struct Fill {
  static constexpr int kSums = 0;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 ? 3 : 4;
  using Sum = T;
  Work work;
  RowCut cut;
  Shape shape;
  NoiseState state;
  bool normal;
  uint32_t purpose;
  Target out;

  VAEFAST_MEMBER void run(int64_t unit, int lane, T*) const {
    const Walk walk = cut.template walk<V>(unit, lane);
    const int64_t start = walk.row * shape.cols + walk.first;
    const NoiseRow row = enter<true>(state, shape, walk.row, walk.first);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      const uint64_t first = row.first + static_cast<uint64_t>(col);
      T values[V];
      if (normal) {
        noise_values<true, T, V, true>(row.seed, first, 0, purpose, values);
      } else {
        noise_values<false, T, V, true>(row.seed, first, 0, purpose, values);
      }
      put<kAny, T, V>(out, start + col, n, values);
    }
  }
};

template <class T, int V>
void fill(const NoiseArgs& args, const cuda::Place& place) {
  const RowCut cut(args.shape.rows, args.shape.cols, V);
  launch(Fill<T, V>{cut.work(false), cut, args.shape, args.state, args.normal, args.purpose,
                    target(args.out, args.shape.rows, args.shape.cols, V)},
         place);
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::noise(const NoiseArgs& args, const Place& place) {
  switch (args.out.dtype) {
    case DType::kF64:
      return VAEFAST_ISA::fill<double, 4>(args, place);
    case DType::kF32:
      return VAEFAST_ISA::fill<float, 4>(args, place);
    default:
      return VAEFAST_ISA::fill<float, 8>(args, place);
  }
}

}  // namespace vaefast
