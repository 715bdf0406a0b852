// Sums over a grid in two stages: partial sums at fixed places in the workspace, then one small
// kernel that adds them up in a fixed order.
#pragma once

#include "cuda/launch.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

// Results i < count, each `factor` times the sum of `terms` partial sums: term t of result i is at
// i * result_step + t * term_step. Where one partial sum is the result, it goes there directly.
struct Total {
  void* out = nullptr;
  double* partials = nullptr;
  int64_t count = 0, terms = 0, result_step = 0, term_step = 1;
  double factor = 1;
  bool wide = false;

  VAEFAST_MEMBER explicit operator bool() const { return out != nullptr; }
  VAEFAST_MEMBER bool direct() const { return terms == 1; }

  // Partial sum `index`, counted as the first stage does.
  VAEFAST_MEMBER void add(int64_t index, double sum) const {
    if (!out) return;
    if (direct()) {
      set(index, sum);
    } else {
      partials[index] = sum;
    }
  }

  VAEFAST_MEMBER void set(int64_t index, double sum) const {
    if (wide) {
      static_cast<double*>(out)[index] = sum * factor;
    } else {
      static_cast<float*>(out)[index] = static_cast<float>(sum * factor);
    }
  }
};

// One result per sample from a partial sum per unit.
inline Total per_sample(void* out, const Shape& shape, const RowCut& cut, double factor,
                        bool wide) {
  const int64_t samples = shape.segments > 0 ? shape.rows / shape.segments : 0;
  const int64_t terms = shape.segments * cut.pieces;
  return {out, nullptr, samples, terms, terms, 1, factor, wide};
}

// Gives each total its part of the workspace.
inline void lay_out(Total* first, Total* second, const cuda::Place& place) {
  double* free = static_cast<double*>(place.workspace);
  double* const end = free + place.bytes / static_cast<int64_t>(sizeof(double));
  for (Total* total : {first, second}) {
    if (total == nullptr || !*total || total->direct()) continue;
    total->partials = free;
    free += total->count * total->terms;
    if (free > end) throw std::invalid_argument("vaefast: the workspace is too small");
  }
}

// The second stage: one launch for both, none where neither needs it.
void add_up(const Total* first, const Total* second, const cuda::Place& place);

}  // namespace VAEFAST_ISA
}  // namespace vaefast
