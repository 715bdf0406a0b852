// What the kernels over several samples of one posterior share: `monte_carlo_kl` and
// `sample_monte_carlo_kl`.
#pragma once

#include "cuda/posterior.cuh"
#include "cuda/totals.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

// The samples that share one read of the posterior, as sums of a unit.
constexpr int kGroup = 4;

// Bytes for a sum of each row of every sample, or of its pieces.
inline int64_t samples_workspace(const SampleKlArgs& q) {
  return cuda::workspace({q.samples * q.shape.rows, q.shape.cols, q.shape.segments},
                         Reduce::kSample, false, 0);
}

// Forward, a unit is a row, or a piece of it, of a group of samples; neighbours have the same
// piece.
template <class K>
struct SampleSums {
  using T = typename K::T;
  static constexpr int kStored = K::kStored, V = K::V;
  static constexpr int kSums = kGroup;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 ? 1 : 2;
  using Sum = T;
  Work work;
  Inputs<K> in;
  RowCut rows;
  int64_t groups;
  Total total;

  // values: a sum per sample and posterior.
  SampleSums(const SampleKlArgs& args, void* values)
      : in(args),
        rows(in.shape.rows * in.samples, in.shape.cols, V),
        groups(divide_up(in.samples, kGroup)) {
    work = {in.shape.rows * rows.pieces * groups, rows.lanes, rows.lanes};
    total = per_sample(values, in.shape, rows, 1.0, args.wide);
    total.count *= in.samples;
  }

  VAEFAST_MEMBER bool sums_up() const { return true; }

  // The first sample of a unit, and the unit within it.
  VAEFAST_MEMBER int64_t first(int64_t unit, int64_t& place) const {
    place = quotient(unit, groups);
    return (unit - place * groups) * kGroup;
  }

  VAEFAST_MEMBER void finish(int64_t unit, const T* sums) const {
    int64_t place;
    const int64_t k = first(unit, place);
#pragma unroll
    for (int i = 0; i < kGroup; ++i)
      if (k + i < in.samples)
        total.add((k + i) * in.shape.rows * rows.pieces + place, static_cast<double>(sums[i]));
  }
};

// Backward, a thread adds up the gradients of its posterior and prior over the samples.
template <class K>
struct SampleGradients {
  using T = typename K::T;
  static constexpr int kStored = K::kStored, V = K::V;
  static constexpr int kSums = 0;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 ? 1 : 2;
  // The upstream gradient has the value's type.
  static constexpr int kUpstream = K::kPlain ? kFloat : kAny;
  using Sum = T;
  Work work;
  Inputs<K> in;
  RowCut rows;
  Target grad_mu, grad_scale, grad_prior_mu, grad_prior_scale;

  explicit SampleGradients(const SampleKlArgs& args)
      : in(args),
        rows(in.shape.rows, in.shape.cols, V),
        grad_mu(result(args.grad_mu)),
        grad_scale(result(args.grad_scale)),
        grad_prior_mu(result(args.grad_prior_mu)),
        grad_prior_scale(result(args.grad_prior_scale)) {
    work = rows.work(false);
  }

  Target result(const Output& out) const { return target(out, in.shape.rows, in.shape.cols, V); }

  // Of the logvars the scales' are half, times dlogvar/dscale. With a prior these are read again:
  // kept through the samples they would take the registers of a second block.
  VAEFAST_MEMBER void put_all(const Vector<K>& v, const Walk& walk, int col, int n, T* mu, T* scale,
                              T* prior_mu, T* prior_scale) const {
    if constexpr (K::kPrior) {
      const int64_t row = anew(walk.row);
      InputRows<K> at;
      at.enter_row(in, row, walk.first);
      Vector<K> again;
      again.read(in, at, col, n);
      put_each(again, row * in.shape.cols + walk.first + col, n, mu, scale, prior_mu, prior_scale);
    } else {
      put_each(v, walk.row * in.shape.cols + walk.first + col, n, mu, scale, nullptr, nullptr);
    }
  }

  VAEFAST_MEMBER void put_each(const Vector<K>& v, int64_t start, int n, T* mu, T* scale,
                               T* prior_mu, T* prior_scale) const {
#pragma unroll
    for (int j = 0; j < V; ++j) scale[j] *= T(0.5) * v.q.slope[j];
    if (grad_mu) put<kStored, T, V>(grad_mu, start, n, mu);
    if (grad_scale) put<kStored, T, V>(grad_scale, start, n, scale);
    if constexpr (K::kPrior) {
#pragma unroll
      for (int j = 0; j < V; ++j) prior_scale[j] *= T(0.5) * v.prior.slope[j];
      if (grad_prior_mu) put<kAny, T, V>(grad_prior_mu, start, n, prior_mu);
      if (grad_prior_scale) put<kAny, T, V>(grad_prior_scale, start, n, prior_scale);
    }
  }
};

// True where the kernels with kPlain serve, as far as the posterior is concerned.
template <int kStored, int V>
bool plain_samples(const SampleKlArgs& args) {
  const int64_t rows = args.shape.rows, cols = args.shape.cols;
  return plain<V>(args, kStored) && known(target(args.grad_mu, rows, cols, V), kStored) &&
         known(target(args.grad_scale, rows, cols, V), kStored);
}

// A forward pass with its sums, or a backward pass, which has none.
template <class Op, class Args>
void run(const Args& args, const cuda::Place& place) {
  Op op(args);
  if constexpr (Op::kSums > 0) lay_out(&op.total, nullptr, place);
  launch(op, place);
  if constexpr (Op::kSums > 0) add_up(&op.total, nullptr, place);
}

// Op<K>: `prior` is whether there is one; `floats` and `halves` whether a plain kernel serves.
template <template <class> class Op, class Args>
void choose(const Args& args, bool prior, bool floats, bool halves, const cuda::Place& place) {
  if (args.q.wide && prior) return run<Op<Variant<double, kAny, 4, true>>>(args, place);
  if (args.q.wide) return run<Op<Variant<double, kAny, 4, false>>>(args, place);
  if (floats) return run<Op<Variant<float, kFloat, 4, false>>>(args, place);
  if (halves) return run<Op<Variant<float, kHalf, 8, false>>>(args, place);
  if (prior) return run<Op<Variant<float, kAny, 4, true>>>(args, place);
  run<Op<Variant<float, kAny, 4, false>>>(args, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
