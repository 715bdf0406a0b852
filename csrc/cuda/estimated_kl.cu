// z = mu + temperature sigma eps and log q(z|x) - log p(z) at each sample, forward and backward.
//
// Per element, with near = (z - mu) / sigma = temperature eps and P the prior's precision:
//   0.5 ((z - prior_mu)^2 P - near^2 - (logvar - prior_logvar)).
#include "cuda/posterior.cuh"
#include "cuda/totals.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// V elements of q and p.
template <class K>
struct Latent {
  using T = typename K::T;
  static constexpr int V = K::V;
  Vector<K> v;
  T spread[V], precision[K::kPrior ? V : 1];

  VAEFAST_MEMBER void read(const Inputs<K>& in, const InputRows<K>& rows, int col, int n) {
    v.read(in, rows, col, n);
#pragma unroll
    for (int j = 0; j < V; ++j) spread[j] = in.temperature * v.q.std[j];
    if constexpr (K::kPrior) {
#pragma unroll
      for (int j = 0; j < V; ++j) precision[j] = exp(-v.prior.logvar[j]);
    }
  }

  VAEFAST_MEMBER T sample(T eps, int j) const { return madd(spread[j], eps, v.mu[j]); }

  VAEFAST_MEMBER T far(T z, int j) const {
    if constexpr (K::kPrior) return z - v.prior_mu[j];
    return z;
  }

  VAEFAST_MEMBER T push(T far, int j) const {
    if constexpr (K::kPrior) return far * precision[j];
    return far;
  }

  VAEFAST_MEMBER T constant(int j) const {
    if constexpr (K::kPrior) return v.q.logvar[j] - v.prior.logvar[j];
    return v.q.logvar[j];
  }
};

// The samples that share one read of the posterior, as sums of a unit.
constexpr int kGroup = 4;

// A unit is a row, or a piece of it, of a group of samples; neighbours have the same piece.
template <class K>
struct EstimatedKl {
  using T = typename K::T;
  static constexpr int kStored = K::kStored, V = K::V;
  static constexpr int kSums = kGroup;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 ? 1 : 2;
  using Sum = T;
  Work work;
  Inputs<K> in;
  RowCut rows;
  Target z;
  int64_t groups;
  Total total;

  explicit EstimatedKl(const EstimatedKlArgs& args)
      : in(args.q),
        rows(in.shape.rows * in.samples, in.shape.cols, V),
        z(target(args.q.z, in.shape.rows * in.samples, in.shape.cols, V)),
        groups(divide_up(in.samples, kGroup)) {
    work = {in.shape.rows * rows.pieces * groups, rows.lanes, rows.lanes};
    total = per_sample(args.q.kl, in.shape, rows, 1.0, args.q.wide);
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
    const int64_t start = walk.row * in.shape.cols + walk.first;
    InputRows<K> at;
    at.enter_row(in, walk.row, walk.first);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      Latent<K> b;
      b.read(in, at, col, n);
      // One after the other: a sample's noise and values need the registers of the one before.
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (k + i >= in.samples) continue;
        T eps[V], kl[V];
        epsilon(in, at, walk.row, walk.first, col, k + i, n, eps);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const T near = in.temperature * eps[j];
          eps[j] = b.sample(eps[j], j);
          const T far = b.far(eps[j], j);
          kl[j] = T(0.5) * (far * b.push(far, j) - near * near - b.constant(j));
        }
        put<kStored, T, V>(z, start + col + (k + i) * in.sample_size, n, eps);
        sums[i] += sum_of<T, V>(kl, n);
      }
    }
  }
};

// A thread adds up the parameters' gradients over the samples, whose noise is made anew.
template <class K>
struct EstimatedKlBackward {
  using T = typename K::T;
  static constexpr int kStored = K::kStored, V = K::V;
  static constexpr bool kPlain = K::kPlain;
  static constexpr int kSums = 0;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 || K::kPrior ? 1 : 2;
  // The upstream gradient of the KL has the KL's type.
  static constexpr int kUpstream = kPlain ? kFloat : kAny;
  using Sum = T;
  Work work;
  Inputs<K> in;
  RowCut rows;
  Source grad_z, grad_kl;
  Target grad_mu, grad_scale, grad_prior_mu, grad_prior_scale;
  bool stop;

  explicit EstimatedKlBackward(const EstimatedKlArgs& args)
      : in(args.q),
        rows(in.shape.rows, in.shape.cols, V),
        grad_z(source<T>(args.q.grad_z, in.shape.rows, V)),
        grad_kl(source<T>(args.q.grad_kl, in.shape.rows, V)),
        grad_mu(target(args.q.grad_mu, in.shape.rows, in.shape.cols, V)),
        grad_scale(target(args.q.grad_scale, in.shape.rows, in.shape.cols, V)),
        grad_prior_mu(target(args.q.grad_prior_mu, in.shape.rows, in.shape.cols, V)),
        grad_prior_scale(target(args.q.grad_prior_scale, in.shape.rows, in.shape.cols, V)),
        stop(args.stop_posterior) {
    work = rows.work(false);
  }

  VAEFAST_MEMBER void run(int64_t unit, int lane, T*) const {
    const Walk walk = rows.template walk<V>(unit, lane);
    const int64_t start = walk.row * in.shape.cols + walk.first;
    InputRows<K> at;
    at.enter_row(in, walk.row, walk.first);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      Latent<K> b;
      b.read(in, at, col, n);
      T by_mu[V] = {}, by_scale[V] = {}, upstream[V] = {};
      T by_prior_mu[K::kPrior ? V : 1] = {}, by_prior_scale[K::kPrior ? V : 1] = {};
#pragma unroll 1
      for (int k = 0; k < in.samples; ++k) {
        Raw<T, V> raw_z, raw_kl;
        const char* z_row = enter<kStored>(grad_z, walk.row, walk.first, k);
        const char* kl_row = enter<kUpstream>(grad_kl, walk.row, walk.first, k);
        fetch<kStored, true>(grad_z, z_row, col, n, raw_z);
        fetch<kUpstream, true>(grad_kl, kl_row, col, n, raw_kl);
        T eps[V], by_z[V], g[V];
        epsilon(in, at, walk.row, walk.first, col, k, n, eps);
        // An absent gradient is decoded as zeros.
        decode<kStored, true>(grad_z, raw_z, by_z);
        decode<kUpstream, true>(grad_kl, raw_kl, g);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const T far = b.far(b.sample(eps[j], j), j), push = b.push(far, j);
          const T pull = stop ? in.temperature * eps[j] / b.v.q.std[j] : T(0);
          const T whole = madd(g[j], push - pull, by_z[j]);
          by_mu[j] += whole;
          by_scale[j] = madd(whole, eps[j], by_scale[j]);
          upstream[j] += g[j];
          if constexpr (K::kPrior) {
            by_prior_mu[j] -= g[j] * push;
            by_prior_scale[j] += g[j] * (T(1) - far * push);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const T score = stop ? T(0) : upstream[j];
        by_scale[j] = T(0.5) * (b.spread[j] * by_scale[j] - score) * b.v.q.slope[j];
      }
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
bool suits(const SampleKlArgs& args) {
  const int64_t rows = args.shape.rows, cols = args.shape.cols;
  return plain<V>(args, kStored) && known(target(args.z, rows * args.samples, cols, V), kStored) &&
         known(source<float>(args.grad_z, rows, V), rows, kStored, true) &&
         known(source<float>(args.grad_kl, rows, V), rows, kFloat, true) &&
         known(target(args.grad_mu, rows, cols, V), kStored) &&
         known(target(args.grad_scale, rows, cols, V), kStored);
}

template <class T, template <class> class Run>
void run_any(const EstimatedKlArgs& args, const cuda::Place& place) {
  if (has_prior(args.q)) return Run<Variant<T, kAny, 4, true>>::run(args, place);
  Run<Variant<T, kAny, 4, false>>::run(args, place);
}

template <template <class> class Run>
void choose(const EstimatedKlArgs& args, const cuda::Place& place) {
  if (args.q.wide) return run_any<double, Run>(args, place);
  if (suits<kFloat, 4>(args.q)) return Run<Variant<float, kFloat, 4, false>>::run(args, place);
  if (suits<kHalf, 8>(args.q)) return Run<Variant<float, kHalf, 8, false>>::run(args, place);
  run_any<float, Run>(args, place);
}

template <class K>
struct RunForward {
  static void run(const EstimatedKlArgs& args, const cuda::Place& place) {
    EstimatedKl<K> op(args);
    lay_out(&op.total, nullptr, place);
    launch(op, place);
    add_up(&op.total, nullptr, place);
  }
};

template <class K>
struct RunBackward {
  static void run(const EstimatedKlArgs& args, const cuda::Place& place) {
    launch(EstimatedKlBackward<K>(args), place);
  }
};

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::estimated_kl(const EstimatedKlArgs& args, const Place& place) {
  VAEFAST_ISA::choose<VAEFAST_ISA::RunForward>(args, place);
}

void cuda::estimated_kl_backward(const EstimatedKlArgs& args, const Place& place) {
  VAEFAST_ISA::choose<VAEFAST_ISA::RunBackward>(args, place);
}

}  // namespace vaefast
