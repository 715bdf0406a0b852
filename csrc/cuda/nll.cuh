// Elementwise likelihoods: the loss and, in the same pass over memory, its gradients. A source per
// storage of the parameters compiles this for every likelihood.
#pragma once

#include "cuda/noise.cuh"
#include "cuda/totals.cuh"
#include "math/likelihoods.h"

namespace vaefast {
namespace VAEFAST_ISA {
// kStored says how the parameters are stored, or kAny. With it there are no mask, weight and
// binarisation, the loss is summed, and the target is `wide`.
template <class F, class T, int kStored, int V>
struct Evaluate {
  static constexpr bool kPlain = kStored != kAny;
  // The loss, and the gradient in a scalar parameter.
  static constexpr int kSums = F::kParams > 1 ? 2 : 1;
  // Of eight elements of several parameters the registers do not suffice.
  static constexpr bool kQuick = kPlain && kHasQuick<F> && (V == 4 || F::kParams < 2);
  static constexpr int kSpare = !kPlain ? 3 : V == 4 && !kQuick ? 5 : 4;
  static constexpr int kBlocksPerSm = sizeof(T) == 8            ? 1
                                      : kSpare - F::kParams > 2 ? kSpare - F::kParams
                                                                : 2;
  using Sum = T;
  Work work;
  RowCut cut;
  F likelihood;
  Shape shape;
  Source params[F::kParams], x, mask, weight;
  // Set where the target is drawn from its intensities; their rows are `target_rows`.
  NoiseState state;
  int64_t target_rows;
  int scalar;
  // `alike`: the target is stored as the parameters are.
  bool any_grad, divided, alike;
  T divisor_inverse, factor, grad_factor;
  Target grads[F::kParams], elements;
  Total loss, scalar_grad;

  explicit Evaluate(const NllArgs& args)
      : cut(args.shape.rows, args.shape.cols, V),
        likelihood(args.numbers),
        shape(args.shape),
        x(source<T>(args.target, args.shape.rows, V)),
        mask(source<T>(args.mask, args.shape.rows, V)),
        weight(source<T>(args.weight, args.shape.rows, V)),
        state(args.state),
        target_rows(args.target_rows),
        scalar(args.scalar),
        any_grad(false),
        divided(args.target.divisor != 1),
        alike(kPlain && x.wide && stored_as(x.view.dtype, kStored) && !divided),
        divisor_inverse(T(1) / T(args.target.divisor)),
        factor(T(args.factor)),
        grad_factor(T(args.grad_factor)) {
    for (int j = 0; j < F::kParams; ++j) {
      params[j] = source<T>(args.params[j], shape.rows, V);
      grads[j] = target(args.grads[j], shape.rows, shape.cols, V);
      any_grad = any_grad || args.grads[j];
    }
    const bool has_scalar_grad = scalar >= 0 && args.grads[scalar];
    work = cut.work(args.reduce != Reduce::kSample && !has_scalar_grad);
    if (args.reduce == Reduce::kElem) {
      const Output out{args.loss, args.wide ? DType::kF64 : DType::kF32};
      elements = target(out, shape.rows, shape.cols, V);
    } else if (args.reduce == Reduce::kSample) {
      loss = per_sample(args.loss, shape, cut, args.factor, args.wide);
    } else {
      loss = {args.loss, nullptr, 1, work.sums(), 0, 1, args.factor, args.wide};
    }
    if (has_scalar_grad)
      scalar_grad = per_sample(args.grads[scalar].data, shape, cut, 1.0, args.wide);
  }

  VAEFAST_MEMBER bool sums_up() const { return loss || scalar_grad; }

  VAEFAST_MEMBER void finish(int64_t index, const T* sums) const {
    loss.add(index, static_cast<double>(sums[0]));
    if constexpr (kSums > 1) scalar_grad.add(index, static_cast<double>(sums[1]));
  }

  // What is read beside the parameters and the target.
  struct Weights {
    const char *mask_row = nullptr, *weight_row = nullptr;
    Raw<T, V> mask, weight;
  };

  VAEFAST_MEMBER void run(int64_t unit, int lane, T* sums) const {
    const Walk walk = cut.template walk<V>(unit, lane);
    const int64_t start = walk.row * shape.cols + walk.first;
    const char* rows[F::kParams];
#pragma unroll
    for (int j = 0; j < F::kParams; ++j) rows[j] = enter<kStored>(params[j], walk.row, walk.first);
    const char* x_row = enter<kAny>(x, walk.row, walk.first);
    Weights weights;
    NoiseRow noise_row = {};
    if constexpr (!kPlain) {
      weights.mask_row = enter<kAny>(mask, walk.row, walk.first);
      weights.weight_row = enter<kAny>(weight, walk.row, walk.first);
      if (state.words != nullptr)
        noise_row = enter<true>(state, shape, remainder(walk.row, target_rows), walk.first);
    }
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      Raw<T, V> raw[F::kParams], raw_x;
#pragma unroll
      for (int j = 0; j < F::kParams; ++j) fetch<kStored, true>(params[j], rows[j], col, n, raw[j]);
      if (kPlain && alike) {
        fetch<kStored, false>(x, x_row, col, n, raw_x);
      } else {
        fetch<kAny, !kPlain>(x, x_row, col, n, raw_x);
      }
      if constexpr (!kPlain) {
        fetch<kAny, true>(mask, weights.mask_row, col, n, weights.mask);
        fetch<kAny, true>(weight, weights.weight_row, col, n, weights.weight);
      }
      T theta[F::kParams][V], target[V], value[V];
#pragma unroll
      for (int j = 0; j < F::kParams; ++j) decode<kStored, true>(params[j], raw[j], theta[j]);
      if (kPlain && alike) {
        decode<kStored, false>(x, raw_x, target);
      } else {
        decode<kAny, !kPlain>(x, raw_x, target);
        if (divided) divide(target);
      }
      if (!kPlain && state.words != nullptr) draw(noise_row, col, target);
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
  VAEFAST_MEMBER void evaluate(const T* target, T (*theta)[V], T* value, T (*slopes)[V]) const {
    bool odd[V];
#pragma unroll
    for (int l = 0; l < V; ++l) {
      T at[F::kParams], slope[F::kParams];
#pragma unroll
      for (int j = 0; j < F::kParams; ++j) at[j] = theta[j][l];
      if constexpr (kQuick) {
        value[l] = likelihood.template quick<kGrad>(target[l], at, slope, odd[l]);
      } else {
        value[l] = likelihood.template nll<kGrad>(target[l], at, slope);
      }
      if constexpr (kGrad) {
#pragma unroll
        for (int j = 0; j < F::kParams; ++j) slopes[j][l] = slope[j] * grad_factor;
      }
    }
    if constexpr (kQuick) {
      bool any = false;
#pragma unroll
      for (int l = 0; l < V; ++l) any |= odd[l];
      if (!rarely(any)) return;
#pragma unroll 1
      for (int l = 0; l < V; ++l) {
        T at[F::kParams], slope[F::kParams];
#pragma unroll
        for (int j = 0; j < F::kParams; ++j) at[j] = pick<V>(theta[j], l);
        const bool here = pick<V>(odd, l);
        place<V>(value, l, here, likelihood.template nll<kGrad>(pick<V>(target, l), at, slope));
        if constexpr (kGrad) {
#pragma unroll
          for (int j = 0; j < F::kParams; ++j) place<V>(slopes[j], l, here, slope[j] * grad_factor);
        }
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

  VAEFAST_MEMBER void draw(const NoiseRow& row, int col, T* target) const {
    T u[V];
    noise_values<false, T, V, false>(row.seed, row.first + static_cast<uint64_t>(col), 0,
                                     static_cast<uint32_t>(Purpose::kBinarize), u);
#pragma unroll
    for (int l = 0; l < V; ++l) target[l] = u[l] <= target[l] ? T(1) : T(0);
  }

  // Elements are weighed; those that the mask leaves out become 0, whatever they and their weights
  // were.
  VAEFAST_MEMBER void weigh(const Weights& weights, T* values) const {
    if constexpr (kPlain) return;
    if (weight) {
      T by[V];
      decode<kAny, true>(weight, weights.weight, by);
#pragma unroll
      for (int l = 0; l < V; ++l) values[l] *= by[l];
    }
    if (mask) {
      T keep[V];
      decode<kAny, true>(mask, weights.mask, keep);
#pragma unroll
      for (int l = 0; l < V; ++l) values[l] = keep[l] != T(0) ? values[l] : T(0);
    }
  }
};

template <class F, class T, int kStored, int V>
void run_form(const NllArgs& args, const cuda::Place& place) {
  Evaluate<F, T, kStored, V> op(args);
  lay_out(&op.loss, &op.scalar_grad, place);
  launch(op, place);
  add_up(&op.loss, &op.scalar_grad, place);
}

// The kernel of the call's likelihood.
template <class T, int kStored, int V>
void run(const NllArgs& args, const cuda::Place& place) {
  int form = 0;
#define VAEFAST_CASE(name) \
  if (args.form == form++) return run_form<name<T>, T, kStored, V>(args, place);
  VAEFAST_LIKELIHOODS(VAEFAST_CASE)
#undef VAEFAST_CASE
  throw std::invalid_argument("vaefast: unknown likelihood form");
}

void nll_float(const NllArgs& args, const cuda::Place& place);
void nll_half(const NllArgs& args, const cuda::Place& place);
void nll_any(const NllArgs& args, const cuda::Place& place);
void nll_double(const NllArgs& args, const cuda::Place& place);

}  // namespace VAEFAST_ISA
}  // namespace vaefast
