// Stored gradients times the upstream one, in place; nothing is touched where that is 1.
#include "cuda/launch.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class T, int V>
struct Multiply {
  static constexpr int kSums = 0;
  static constexpr int kBlocksPerSm = 4;
  static_assert(kMaxParams == 3, "run() looks for one of three");
  using Sum = T;
  Work work;
  RowCut cut;
  Source upstream, grad;
  Target out;
  bool one_value;
  // Units of each gradient, and where each lies.
  int64_t each = 0;
  void* grads[kMaxParams] = {};

  VAEFAST_MEMBER void run(int64_t index, int lane, T*) const {
    const int which = index < each ? 0 : index < 2 * each ? 1 : 2;
    const int64_t unit = index - which * each;
    Source grad = this->grad;
    Target out = this->out;
    grad.view.data = out.output.data = grads[which];
    const Walk walk = cut.template walk<V>(unit, lane);
    const int64_t start = walk.row * cut.cols + walk.first;
    const char* by = enter<kAny>(upstream, walk.row, walk.first);
    if (one_value && load_one<T>(upstream.view.dtype, by) == T(1)) return;
    const char* row = enter<kAny>(grad, walk.row, walk.first);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      Raw<T, V> raw_by, raw_grad;
      fetch<kAny, true>(upstream, by, col, n, raw_by);
      fetch<kAny, true>(grad, row, col, n, raw_grad);
      T times[V], values[V];
      decode<kAny, true>(upstream, raw_by, times);
      decode<kAny, true>(grad, raw_grad, values);
#pragma unroll
      for (int j = 0; j < V; ++j) values[j] *= times[j];
      put<kAny, T, V>(out, start + col, n, values);
    }
  }
};

template <class T, int V>
void multiply(const ScaleArgs& args, const cuda::Place& place) {
  Shape shape = args.shape;
  View upstream = args.upstream;
  View* const views[] = {&upstream};
  collapse(shape, shape.rows, views, 1);
  const RowCut cut(shape.rows, shape.cols, V);
  Multiply<T, V> op{cut.work(false), cut, source<T>(upstream, shape.rows, V), {}, {}, false};
  op.one_value = upstream.col_stride == 0 && upstream.row_stride == 0;
  op.each = op.work.units;
  View grad;
  grad.dtype = args.grad.dtype;
  grad.mod = shape.rows > 0 ? shape.rows : 1;
  grad.row_stride = shape.cols;
  grad.col_stride = 1;
  int count = 0;
  const auto add = [&](const Output& output) {
    if (!output) return;
    grad.data = op.grads[count] = output.data;
    const Source from = source<T>(grad, shape.rows, V);
    const Target to = target(output, shape.rows, shape.cols, V);
    // Vectors where all of them allow these.
    const bool wide = count == 0 || (op.grad.wide && op.out.wide);
    op.grad = from;
    op.out = to;
    op.grad.wide = from.wide && wide;
    op.out.wide = to.wide && wide;
    ++count;
  };
  add(args.grad);
  for (const Output& output : args.others) add(output);
  op.work.units *= count;
  launch(op, place);
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::scale(const ScaleArgs& args, const Place& place) {
  switch (args.grad.dtype) {
    case DType::kF64:
      return VAEFAST_ISA::multiply<double, 4>(args, place);
    case DType::kF32:
      return VAEFAST_ISA::multiply<float, 4>(args, place);
    default:
      return VAEFAST_ISA::multiply<float, 8>(args, place);
  }
}

}  // namespace vaefast
