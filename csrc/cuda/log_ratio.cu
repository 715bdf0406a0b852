// log p(z) - log q(z|x) of samples and diagonal Gaussians, forward and backward.
//
// Per element, with P the precision 1 / sigma^2 of q and of p:
//   0.5 ((z - mu)^2 P_q - (z - prior_mu)^2 P_p + constant).
// Without a prior P_p is 0, so -log q remains.
#include "cuda/posterior.cuh"
#include "cuda/totals.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// V elements of q and p. A standard normal prior, or none, is two numbers.
template <class K>
struct Densities {
  using T = typename K::T;
  static constexpr int V = K::V;
  Vector<K> v;
  T precision[V], prior_precision[K::kPrior ? V : 1];

  VAEFAST_MEMBER void read(const Inputs<K>& in, const InputRows<K>& rows, int col, int n,
                           T standard) {
    v.read(in, rows, col, n);
#pragma unroll
    for (int j = 0; j < V; ++j) precision[j] = exp(-v.q.logvar[j]);
    if constexpr (K::kPrior) {
#pragma unroll
      for (int j = 0; j < V; ++j) prior_precision[j] = exp(-v.prior.logvar[j]);
    } else {
      prior_precision[0] = standard;
    }
  }

  VAEFAST_MEMBER T near(const T* z, int j) const { return z[j] - v.mu[j]; }

  VAEFAST_MEMBER T far(const T* z, int j) const {
    if constexpr (K::kPrior) return z[j] - v.prior_mu[j];
    return z[j];
  }

  VAEFAST_MEMBER T push(const T* z, int j) const {
    return far(z, j) * prior_precision[K::kPrior ? j : 0];
  }
};

// The samples that share one read of the posterior, as sums of a unit.
constexpr int kGroup = 4;

// A unit is a row, or a piece of it, of a group of samples; neighbours have the same piece.
template <class K>
struct LogRatio {
  using T = typename K::T;
  static constexpr int kStored = K::kStored, V = K::V;
  static constexpr int kSums = kGroup;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 ? 1 : 2;
  using Sum = T;
  Work work;
  Inputs<K> in;
  RowCut rows;
  Source z;
  T standard, rest;
  int64_t groups;
  Total total;

  explicit LogRatio(const LogRatioArgs& args)
      : in(args.q),
        rows(in.shape.rows * in.samples, in.shape.cols, V),
        z(source<T>(args.z, in.shape.rows, V)),
        standard(args.prior ? T(1) : T(0)),
        rest(args.prior ? T(0) : T(kLog2Pi)),
        groups(divide_up(in.samples, kGroup)) {
    work = {in.shape.rows * rows.pieces * groups, rows.lanes, rows.lanes};
    total = per_sample(args.value, in.shape, rows, 1.0, args.q.wide);
    total.count *= in.samples;
  }

  VAEFAST_MEMBER bool sums_up() const { return true; }

  VAEFAST_MEMBER void finish(int64_t unit, const T* sums) const {
    const int64_t place = quotient(unit, groups), k = (unit - place * groups) * kGroup;
#pragma unroll
    for (int i = 0; i < kGroup; ++i)
      if (k + i < in.samples)
        total.add((k + i) * in.shape.rows * rows.pieces + place, static_cast<double>(sums[i]));
  }

  VAEFAST_MEMBER void run(int64_t unit, int lane, T* sums) const {
    const int64_t place = quotient(unit, groups), k = (unit - place * groups) * kGroup;
    const Walk walk = rows.template walk<V>(place, lane);
    InputRows<K> at;
    at.enter_row(in, walk.row, walk.first);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      Raw<T, V> raw[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (k + i >= in.samples) continue;
        const char* row = enter<kStored>(z, walk.row, walk.first, k + i);
        fetch<kStored, true>(z, row, col, n, raw[i]);
      }
      Densities<K> b;
      b.read(in, at, col, n, standard);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (k + i >= in.samples) continue;
        T sample[V], value[V];
        decode<kStored, true>(z, raw[i], sample);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const T near = b.near(sample, j);
          T constant = b.v.q.logvar[j] + rest;
          if constexpr (K::kPrior) constant = b.v.q.logvar[j] - b.v.prior.logvar[j];
          value[j] = T(0.5) * (near * near * b.precision[j] - b.far(sample, j) * b.push(sample, j) +
                               constant);
        }
        sums[i] += sum_of<T, V>(value, n);
      }
    }
  }
};

// A thread adds up the parameters' gradients over the samples.
template <class K>
struct LogRatioBackward {
  using T = typename K::T;
  static constexpr int kStored = K::kStored, V = K::V;
  static constexpr bool kPlain = K::kPlain;
  static constexpr int kSums = 0;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 || K::kPrior ? 1 : 2;
  // The upstream gradient has the value's type.
  static constexpr int kUpstream = kPlain ? kFloat : kAny;
  using Sum = T;
  Work work;
  Inputs<K> in;
  RowCut rows;
  Source z, upstream;
  Target grad_z, grad_mu, grad_scale, grad_prior_mu, grad_prior_scale;
  T standard;

  explicit LogRatioBackward(const LogRatioArgs& args)
      : in(args.q),
        rows(in.shape.rows, in.shape.cols, V),
        z(source<T>(args.z, in.shape.rows, V)),
        upstream(source<T>(args.upstream, in.shape.rows, V)),
        grad_z(target(args.grad_z, in.shape.rows * in.samples, in.shape.cols, V)),
        grad_mu(target(args.q.grad_mu, in.shape.rows, in.shape.cols, V)),
        grad_scale(target(args.q.grad_scale, in.shape.rows, in.shape.cols, V)),
        grad_prior_mu(target(args.q.grad_prior_mu, in.shape.rows, in.shape.cols, V)),
        grad_prior_scale(target(args.q.grad_prior_scale, in.shape.rows, in.shape.cols, V)),
        standard(args.prior ? T(1) : T(0)) {
    work = rows.work(false);
  }

  VAEFAST_MEMBER void run(int64_t unit, int lane, T*) const {
    const Walk walk = rows.template walk<V>(unit, lane);
    const int64_t start = walk.row * in.shape.cols + walk.first;
    InputRows<K> at;
    at.enter_row(in, walk.row, walk.first);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      Densities<K> b;
      b.read(in, at, col, n, standard);
      T by_mu[V] = {}, by_scale[V] = {};
      T by_prior_mu[K::kPrior ? V : 1] = {}, by_prior_scale[K::kPrior ? V : 1] = {};
#pragma unroll 1
      for (int k = 0; k < in.samples; ++k) {
        Raw<T, V> raw_z, raw_upstream;
        fetch<kStored, true>(z, enter<kStored>(z, walk.row, walk.first, k), col, n, raw_z);
        fetch<kUpstream, true>(upstream, enter<kUpstream>(upstream, walk.row, walk.first, k), col,
                               n, raw_upstream);
        T sample[V], g[V];
        decode<kStored, true>(z, raw_z, sample);
        decode<kUpstream, true>(upstream, raw_upstream, g);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const T near = b.near(sample, j), pull = near * b.precision[j];
          const T push = b.push(sample, j);
          by_mu[j] -= g[j] * pull;
          by_scale[j] += g[j] * (T(1) - near * pull);
          if constexpr (K::kPrior) {
            by_prior_mu[j] += g[j] * push;
            by_prior_scale[j] += g[j] * (b.far(sample, j) * push - T(1));
          }
          g[j] *= pull - push;
        }
        if (grad_z) put<kStored, T, V>(grad_z, start + col + k * in.sample_size, n, g);
      }
#pragma unroll
      for (int j = 0; j < V; ++j) by_scale[j] *= T(0.5) * b.v.q.slope[j];
      if (grad_mu) put<kStored, T, V>(grad_mu, start + col, n, by_mu);
      if (grad_scale) put<kStored, T, V>(grad_scale, start + col, n, by_scale);
      if constexpr (K::kPrior) {
#pragma unroll
        for (int j = 0; j < V; ++j) by_prior_scale[j] *= T(0.5) * b.v.prior.slope[j];
        if (grad_prior_mu) put<kAny, T, V>(grad_prior_mu, start + col, n, by_prior_mu);
        if (grad_prior_scale) put<kAny, T, V>(grad_prior_scale, start + col, n, by_prior_scale);
      }
    }
  }
};

template <int kStored, int V>
bool suits(const LogRatioArgs& args) {
  const int64_t rows = args.q.shape.rows, cols = args.q.shape.cols;
  return plain<V>(args.q, kStored) && known(source<float>(args.z, rows, V), rows, kStored, true) &&
         known(source<float>(args.upstream, rows, V), rows, kFloat, true) &&
         known(target(args.grad_z, rows * args.q.samples, cols, V), kStored) &&
         known(target(args.q.grad_mu, rows, cols, V), kStored) &&
         known(target(args.q.grad_scale, rows, cols, V), kStored);
}

template <class T, template <class> class Run>
void run_any(const LogRatioArgs& args, const cuda::Place& place) {
  if (args.prior && has_prior(args.q)) return Run<Variant<T, kAny, 4, true>>::run(args, place);
  Run<Variant<T, kAny, 4, false>>::run(args, place);
}

template <template <class> class Run>
void choose(const LogRatioArgs& args, const cuda::Place& place) {
  if (args.q.wide) return run_any<double, Run>(args, place);
  if (suits<kFloat, 4>(args)) return Run<Variant<float, kFloat, 4, false>>::run(args, place);
  if (suits<kHalf, 8>(args)) return Run<Variant<float, kHalf, 8, false>>::run(args, place);
  run_any<float, Run>(args, place);
}

template <class K>
struct RunForward {
  static void run(const LogRatioArgs& args, const cuda::Place& place) {
    LogRatio<K> op(args);
    lay_out(&op.total, nullptr, place);
    launch(op, place);
    add_up(&op.total, nullptr, place);
  }
};

template <class K>
struct RunBackward {
  static void run(const LogRatioArgs& args, const cuda::Place& place) {
    launch(LogRatioBackward<K>(args), place);
  }
};

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::log_ratio(const LogRatioArgs& args, const Place& place) {
  VAEFAST_ISA::choose<VAEFAST_ISA::RunForward>(args, place);
}

void cuda::log_ratio_backward(const LogRatioArgs& args, const Place& place) {
  VAEFAST_ISA::choose<VAEFAST_ISA::RunBackward>(args, place);
}

}  // namespace vaefast
