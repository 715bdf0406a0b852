// The second stage of the sums: partial sums to results.
#include "cuda/totals.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// Of at most two totals.
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

}  // namespace

void add_up(const Total* first, const Total* second, const cuda::Place& place) {
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
