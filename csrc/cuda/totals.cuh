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

// The second stage, for at most two totals in one launch.
struct AddUp {
  static constexpr int kSums = 1;
  static constexpr int kBlocksPerSm = 4;
  using Sum = double;
  Work work;
  Total totals[2];

  VAEFAST_MEMBER bool sums_up() const { return true; }

  VAEFAST_MEMBER const Total& total(int64_t& unit) const {
    if (unit < totals[0].count) return totals[0];
    unit -= totals[0].count;
    return totals[1];
  }

  VAEFAST_MEMBER void run(int64_t unit, int lane, double* sums) const {
    const Total& total = this->total(unit);
    const double* first = total.partials + unit * total.result_step;
    double sum = 0;
    for (int64_t t = lane; t < total.terms; t += work.lanes) sum += first[t * total.term_step];
    sums[0] = sum;
  }

  VAEFAST_MEMBER void finish(int64_t unit, const double* sums) const {
    const Total& total = this->total(unit);
    total.set(unit, sums[0]);
  }
};

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

inline void add_up(const Total* first, const Total* second, const cuda::Place& place) {
  AddUp op;
  int64_t most = 0;
  int used = 0;
  bool columns = false;
  for (const Total* total : {first, second}) {
    if (total == nullptr || !*total || total->direct()) continue;
    op.totals[used++] = *total;
    op.work.units += total->count;
    most = total->terms > most ? total->terms : most;
    columns = columns || total->term_step != 1;
  }
  // Neighbouring threads read neighbouring partial sums.
  op.work.lanes = columns ? 1 : most > 512 ? kThreads : kWarp;
  op.work.span = op.work.lanes;
  launch(op, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
