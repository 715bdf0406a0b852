// Elementwise likelihoods: the loss and, in the same pass over memory, its gradients.
#include "cuda/stream.cuh"
#include "cuda/totals.cuh"
#include "math/likelihoods.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// kStored says how the parameters are stored, or kAny. With it there are no mask, weight and
// binarisation, the loss is summed, and the target is `wide`.
template <class F, class T, int kStored, int V>
struct Evaluate {
  static constexpr bool kPlain = kStored != kAny;
  // The loss, and the gradient in a scalar parameter.
  static constexpr int kSums = F::kParams > 1 ? 2 : 1;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 ? 1 : V > 4 ? 3 : kPlain ? 4 : 3;
  using Sum = T;
  Work work;
  RowCut cut;
  F likelihood;
  Shape shape;
  Source params[F::kParams], x, mask, weight;
  // Set where the target is drawn from its intensities; their rows are `target_rows`.
  Stream stream;
  int64_t target_rows;
  int scalar;
  bool any_grad;
  T divisor_inverse, factor, grad_factor;
  Target grads[F::kParams], elements;
  Total loss, scalar_grad;

  VAEFAST_MEMBER bool sums_up() const { return loss || scalar_grad; }

  VAEFAST_MEMBER void finish(int64_t index, const T* sums) const {
    loss.add(index, static_cast<double>(sums[0]));
    if constexpr (kSums > 1) scalar_grad.add(index, static_cast<double>(sums[1]));
  }

  // What is read beside the parameters and the target.
  struct Weights {
    Row<T> mask_row, weight_row;
    Raw<T, V> mask, weight;
  };

  VAEFAST_MEMBER void run(int64_t unit, int lane, T* sums) const {
    const Walk walk = cut.template walk<V>(unit, lane);
    const int64_t start = walk.row * shape.cols + walk.first;
    Row<T> rows[F::kParams];
#pragma unroll
    for (int j = 0; j < F::kParams; ++j)
      rows[j] = enter<kStored, kAny, T>(params[j], walk.row, walk.first);
    const Row<T> x_row = enter<kAny, kAny, T>(x, walk.row, walk.first);
    Weights weights;
    StreamRow noise_row = {};
    if constexpr (!kPlain) {
      weights.mask_row = enter<kAny, kAny, T>(mask, walk.row, walk.first);
      weights.weight_row = enter<kAny, kAny, T>(weight, walk.row, walk.first);
      if (stream.state != nullptr)
        noise_row = enter<true>(stream, shape, remainder(walk.row, target_rows), walk.first);
    }
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      Raw<T, V> raw[F::kParams], raw_x;
#pragma unroll
      for (int j = 0; j < F::kParams; ++j)
        fetch<kStored, true>(params[j], rows[j], col, n, raw[j]);
      fetch<kAny, !kPlain>(x, x_row, col, n, raw_x);
      if constexpr (!kPlain) {
        fetch<kAny, true>(mask, weights.mask_row, col, n, weights.mask);
        fetch<kAny, true>(weight, weights.weight_row, col, n, weights.weight);
      }
      T theta[F::kParams][V], target[V], value[V];
#pragma unroll
      for (int j = 0; j < F::kParams; ++j)
        decode<kStored, true>(params[j], rows[j], raw[j], theta[j]);
      decode<kAny, !kPlain>(x, x_row, raw_x, target);
      if (x.view.divisor != 1) divide(target);
      if (!kPlain && stream.state != nullptr) draw(noise_row, col, target);
      if (any_grad) {
        T slopes[F::kParams][V];
        evaluate<true>(target, theta, value, slopes);
#pragma unroll
        for (int j = 0; j < F::kParams; ++j) {
          if (!grads[j]) continue;
          weigh(weights, slopes[j]);
          if (j > 0 && j == scalar) {
            sums[kSums - 1] += sum_of<T, V>(slopes[j], n);
          } else {
            put<kStored, T, V>(grads[j], start + col, n, slopes[j]);
          }
        }
      } else {
        evaluate<false>(target, theta, value, theta);
      }
      weigh(weights, value);
      if (!kPlain && elements) {
#pragma unroll
        for (int l = 0; l < V; ++l) value[l] *= factor;
        put<kAny, T, V>(elements, start + col, n, value);
      } else {
        sums[0] += sum_of<T, V>(value, n);
      }
    }
  }

  template <bool kGrad>
  VAEFAST_MEMBER void evaluate(const T* target, T (*theta)[V], T* value,
                               T (*slopes)[V]) const {
#pragma unroll
    for (int l = 0; l < V; ++l) {
      T at[F::kParams], slope[F::kParams];
#pragma unroll
      for (int j = 0; j < F::kParams; ++j) at[j] = theta[j][l];
      value[l] = likelihood.template nll<kGrad>(target[l], at, slope);
      if constexpr (kGrad) {
#pragma unroll
        for (int j = 0; j < F::kParams; ++j) slopes[j][l] = slope[j] * grad_factor;
      }
    }
  }

  // Rounded as a division is: the product's remainder is exact in the fused operation.
  VAEFAST_MEMBER void divide(T* target) const {
    const T by = T(x.view.divisor);
#pragma unroll
    for (int l = 0; l < V; ++l) {
      const T q = target[l] * divisor_inverse;
      target[l] = madd(madd(-q, by, target[l]), divisor_inverse, q);
    }
  }

  VAEFAST_MEMBER void draw(const StreamRow& row, int col, T* target) const {
    T u[V];
    stream_values<false, T, V>(row.seed, row.first + static_cast<uint64_t>(col), 0,
                               static_cast<uint32_t>(Purpose::kBinarize), u);
#pragma unroll
    for (int l = 0; l < V; ++l) target[l] = u[l] <= target[l] ? T(1) : T(0);
  }

  // Elements that the mask leaves out become 0, whatever they were; the others are weighed.
  VAEFAST_MEMBER void weigh(const Weights& weights, T* values) const {
    if constexpr (kPlain) return;
    if (mask) {
      T keep[V];
      decode<kAny, true>(mask, weights.mask_row, weights.mask, keep);
#pragma unroll
      for (int l = 0; l < V; ++l) values[l] = keep[l] != T(0) ? values[l] : T(0);
    }
    if (weight) {
      T by[V];
      decode<kAny, true>(weight, weights.weight_row, weights.weight, by);
#pragma unroll
      for (int l = 0; l < V; ++l) values[l] *= by[l];
    }
  }
};

// True where the kernel for one storage type can run this call.
template <int kParams>
bool plain(const NllArgs& args, DType dtype, int vector) {
  const int64_t rows = args.shape.rows;
  if (args.mask || args.weight || args.stream.state != nullptr || args.reduce == Reduce::kElem ||
      !source<float>(args.target, rows, vector).wide)
    return false;
  for (int j = 0; j < kParams; ++j) {
    if (j == args.scalar) continue;
    if (!known(source<float>(args.params[j], rows, vector), rows, dtype, true) ||
        !known(target(args.grads[j], rows, args.shape.cols, vector), dtype))
      return false;
  }
  return args.scalar != 0;
}

template <class F, class T, int kStored, int V>
void run(const NllArgs& args, const cuda::Place& place) {
  const Shape& shape = args.shape;
  const RowCut cut(shape.rows, shape.cols, V);
  const bool scalar_grad = args.scalar >= 0 && args.grads[args.scalar];
  const bool per_unit = args.reduce == Reduce::kSample || scalar_grad;
  Evaluate<F, T, kStored, V> op{cut.work(!per_unit), cut, F(args.numbers), shape};
  op.any_grad = false;
  for (int j = 0; j < F::kParams; ++j) {
    op.params[j] = source<T>(args.params[j], shape.rows, V);
    op.grads[j] = target(args.grads[j], shape.rows, shape.cols, V);
    op.any_grad = op.any_grad || args.grads[j];
  }
  op.x = source<T>(args.target, shape.rows, V);
  op.mask = source<T>(args.mask, shape.rows, V);
  op.weight = source<T>(args.weight, shape.rows, V);
  op.stream = args.stream;
  op.target_rows = args.target_rows;
  op.scalar = args.scalar;
  op.divisor_inverse = T(1) / T(args.target.divisor);
  op.factor = T(args.factor);
  op.grad_factor = T(args.grad_factor);
  if (args.reduce == Reduce::kElem) {
    op.elements = target({args.loss, args.wide ? DType::kF64 : DType::kF32}, shape.rows, shape.cols,
                         V);
  } else if (args.reduce == Reduce::kSample) {
    op.loss = per_sample(args.loss, shape, cut, args.factor, args.wide);
  } else {
    op.loss = {args.loss, nullptr, 1, op.work.sums(), 0, 1, args.factor, args.wide};
  }
  if (scalar_grad)
    op.scalar_grad = per_sample(args.grads[args.scalar].data, shape, cut, 1.0, args.wide);
  lay_out(&op.loss, &op.scalar_grad, place);
  launch(op, place);
  add_up(&op.loss, &op.scalar_grad, place);
}

template <template <class> class F>
void choose(const NllArgs& args, const cuda::Place& place) {
  constexpr int kParams = F<float>::kParams;
  if (args.wide) return run<F<double>, double, kAny, 4>(args, place);
  if (plain<kParams>(args, DType::kF32, 4))
    return run<F<float>, float, kStoredAs<DType::kF32>, 4>(args, place);
  if (plain<kParams>(args, DType::kBF16, 8))
    return run<F<float>, float, kStoredAs<DType::kBF16>, 8>(args, place);
  if (plain<kParams>(args, DType::kF16, 8))
    return run<F<float>, float, kStoredAs<DType::kF16>, 8>(args, place);
  run<F<float>, float, kAny, 4>(args, place);
}

// Rows that nothing tells apart become one: no row then begins where no vector can.
NllArgs collapsed(NllArgs args) {
  const bool scalar_grad = args.scalar >= 0 && args.grads[args.scalar];
  if (args.reduce == Reduce::kSample || scalar_grad || args.stream.per_sample) return args;
  View* const views[] = {&args.params[0], &args.params[1], &args.params[2],
                         &args.target,    &args.mask,      &args.weight};
  const int64_t rows = args.shape.rows;
  const bool repeats = args.target_rows != rows;
  if (repeats || !collapse(args.shape, rows, views, 6))
    collapse(args.shape, args.target_rows, views, 6);
  if (args.shape.rows != rows) args.target_rows = 1;
  return args;
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::nll(const NllArgs& given, const Place& place) {
  const NllArgs args = VAEFAST_ISA::collapsed(given);
  int form = 0;
#define VAEFAST_CASE(name) \
  if (args.form == form++) return VAEFAST_ISA::choose<VAEFAST_ISA::name>(args, place);
  VAEFAST_LIKELIHOODS(VAEFAST_CASE)
#undef VAEFAST_CASE
  throw std::invalid_argument("vaefast: unknown likelihood form");
}

}  // namespace vaefast
