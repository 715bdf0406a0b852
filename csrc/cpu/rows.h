// What the likelihoods with a class dimension share: where positions, weights and results lie.
#pragma once

#include "cpu/positions.h"
#include "cpu/sums.h"
#include "math/special.h"

namespace vaefast {
namespace VAEFAST_ISA {

// `count` positions from `at` of row `row` on; their place among the target's positions.
struct Positions {
  int64_t row, at, count;

  int64_t place(const RowNllArgs& args) const { return row % args.target_rows * args.inner + at; }
};

// Rows cut into runs of at most `width` positions: the cut does not depend on the threads.
struct Runs {
  int64_t width, per_row, count;

  Runs(const RowNllArgs& args, int64_t widest)
      : width(widest), per_row((args.inner + widest - 1) / widest), count(args.rows * per_row) {}

  Positions at(const RowNllArgs& args, int64_t index) const {
    const int64_t start = index % per_row * width, left = args.inner - start;
    return {index / per_row, start, left < width ? left : width};
  }
};

VAEFAST_FN char* grad_at(const RowNllArgs& args, int64_t row, int64_t c, int64_t at) {
  const int64_t index = (row * args.classes + c) * args.inner + at;
  return static_cast<char*>(args.grad.data) + index * size_of(args.grad.dtype);
}

// n stored elements where they lie, or converted into `buffer`.
template <class T>
VAEFAST_FN const T* in_type(DType dtype, const char* source, T* buffer, int64_t n) {
  if (same_type(dtype, buffer)) return reinterpret_cast<const T*>(source);
  widen(dtype, source, buffer, n);
  return buffer;
}

// Where a position's value goes until all are there: the loss itself, or scratch.
template <class T>
struct Values {
  T* loss;
  double* scratch;

  void set(const RowNllArgs& args, int64_t index, double value) const {
    if (args.reduce == Reduce::kElem) {
      loss[index] = static_cast<T>(value * args.factor);
    } else {
      scratch[index] = value;
    }
  }
};

// The values of all positions, summed in the order in which they lie.
template <class T>
static void reduce_values(const RowNllArgs& args, const double* values) {
  T* loss = static_cast<T*>(args.loss);
  if (args.reduce == Reduce::kElem) return;
  if (args.reduce == Reduce::kSum) {
    *loss = static_cast<T>(total_of(values, args.rows * args.inner) * args.factor);
    return;
  }
  const int64_t each = args.segments * args.inner;
  for (int64_t b = 0; b < args.rows / args.segments; ++b)
    loss[b] = static_cast<T>(total_of(values + b * each, each) * args.factor);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
