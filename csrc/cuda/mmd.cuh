// What the maximum mean discrepancy's kernels share: whom a block meets, the kernel of squared
// distances, and the sum of the shares.
#pragma once

#include "cuda/pairs.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

VAEFAST_FN float inverse_of(float x) {
#if defined(__CUDA_ARCH__)
  // 1 ulp; the division that rounds takes eight instructions more.
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

VAEFAST_FN double inverse_of(double x) { return 1.0 / x; }

// The points whose gradient a block makes, and those they are paired with: first all of their own
// sample, then those of the other, where the gradient or the value has them.
template <class T>
struct Side {
  Points<T> own, other;
  TileCut cut;
  // Of the own sample.
  int64_t within_tiles = 0;
  bool counts_other = false;
  // Of the value; a slope's are twice the second, and four times the first: each pair of one sample
  // is met from both of its points.
  double within = 0, across = 0;
  Copied<T> grad;

  VAEFAST_MEMBER bool wanted() const { return grad.out != nullptr; }
};

// The kernel's scales.
template <class T>
struct MmdKernel {
  bool rbf = false;
  int scales = 0;
  // The scale, or its inverse for rbf.
  T number[kMaxScales];

  MmdKernel() = default;
  explicit MmdKernel(const MmdArgs& args) : rbf(args.rbf), scales(args.scales) {
    for (int s = 0; s < scales; ++s)
      number[s] = static_cast<T>(rbf ? 1 / args.scale[s] : args.scale[s]);
  }

  // Adds one scale's values to a sum and its slopes to those of the pairs.
  template <bool kRbf, int kRows, int kCols>
  VAEFAST_MEMBER static void add_scale(T scale, const T (&squared)[kRows][kCols],
                                       T (&slope)[kRows][kCols], T& value) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const T d = squared[i][j], near = kRbf ? scale : inverse_of(scale + d);
        const T k = kRbf ? exp_or_zero(-d * scale) : scale * near;
        value += k;
        slope[i][j] = madd(-k, near, slope[i][j]);
      }
    }
  }

  // The slopes of some pairs; returns the sum of their values.
  template <int kRows, int kCols>
  VAEFAST_MEMBER T weigh(const T (&squared)[kRows][kCols], T (&slope)[kRows][kCols]) const {
    T value = T(0);
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kCols; ++j) slope[i][j] = T(0);
#pragma unroll 1
    for (int s = 0; s < scales; ++s) {
      if (rbf) {
        add_scale<true>(number[s], squared, slope, value);
      } else {
        add_scale<false>(number[s], squared, slope, value);
      }
    }
    return value;
  }
};

// Adds the shares up. A unit is a warp: the first has the value, the others parts of the gradients.
template <class T>
struct MmdTotals {
  static constexpr int kSums = 1, kBlocksPerSm = 4;
  using Sum = double;
  Work work;
  Copied<T> grads[2];
  const double* values;
  int64_t count;
  double constant;
  void* value;

  VAEFAST_MEMBER bool sums_up() const { return true; }

  VAEFAST_MEMBER void finish(int64_t unit, const double* sums) const {
    if (unit == 0) *static_cast<T*>(value) = static_cast<T>(constant + sums[0]);
  }

  VAEFAST_MEMBER void run(int64_t unit, int lane, double* sums) const {
    if (unit > 0) return add_up_one_of(grads, unit - 1, lane);
    for (int64_t i = lane; i < count; i += kWarp) sums[0] += values[i];
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
