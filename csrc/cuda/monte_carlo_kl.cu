// log q(z|x) - log p(z) of given samples and diagonal Gaussians, forward and backward.
//
// Per element, with sigma_q and sigma_p those of q and of p:
//   0.5 (((z - prior_mu) / sigma_p)^2 - ((z - mu) / sigma_q)^2 - constant).
// Without a prior 1 / sigma_p is 0, so log q remains.
#include "cuda/samples.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// V elements of q and p, with the square roots of 1 / sigma. A standard normal prior, or none, is
// two numbers.
template <class K>
struct Densities {
  using T = typename K::T;
  static constexpr int V = K::V;
  Vector<K> v;
  T root[V], prior_root[K::kPrior ? V : 1];

  VAEFAST_MEMBER void read(const Inputs<K>& in, const InputRows<K>& rows, int col, int n,
                           T standard) {
    v.read(in, rows, col, n);
#pragma unroll
    for (int j = 0; j < V; ++j) root[j] = whitening_root(v.q.logvar[j]);
    if constexpr (K::kPrior) {
#pragma unroll
      for (int j = 0; j < V; ++j) prior_root[j] = whitening_root(v.prior.logvar[j]);
    } else {
      prior_root[0] = standard;
    }
  }

  VAEFAST_MEMBER T near(const T* z, int j) const { return whitened(z[j] - v.mu[j], root[j]); }

  VAEFAST_MEMBER T far(const T* z, int j) const {
    if constexpr (K::kPrior) return whitened(z[j] - v.prior_mu[j], prior_root[j]);
    return z[j] * prior_root[0];
  }

  VAEFAST_MEMBER T prior_score(T far, int j) const {
    if constexpr (K::kPrior) return whitened(far, prior_root[j]);
    return far;
  }
};

template <class K>
struct MonteCarloKl : SampleSums<K> {
  using Base = SampleSums<K>;
  using T = typename K::T;
  using Base::in;
  using Base::rows;
  static constexpr int kStored = K::kStored, V = K::V;
  Source z;
  T standard, rest;

  explicit MonteCarloKl(const MonteCarloKlArgs& args)
      : Base(args.q, args.value),
        z(source<T>(args.z, in.shape.rows, V)),
        standard(args.prior ? T(1) : T(0)),
        rest(args.prior ? T(0) : T(kLog2Pi)) {}

  VAEFAST_MEMBER void run(int64_t unit, int lane, T* sums) const {
    int64_t place;
    const int64_t k = this->first(unit, place);
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
          T constant = b.v.q.logvar[j] + rest;
          if constexpr (K::kPrior) constant = b.v.q.logvar[j] - b.v.prior.logvar[j];
          value[j] = madd(T(-0.5), constant,
                          half_difference_of_squares(b.far(sample, j), b.near(sample, j)));
        }
        sums[i] += sum_of<T, V>(value, n);
      }
    }
  }
};

template <class K>
struct MonteCarloKlBackward : SampleGradients<K> {
  using Base = SampleGradients<K>;
  using T = typename K::T;
  using Base::in;
  using Base::kUpstream;
  using Base::rows;
  static constexpr int kStored = K::kStored, V = K::V;
  Source z, upstream;
  Target grad_z;
  T standard;

  explicit MonteCarloKlBackward(const MonteCarloKlArgs& args)
      : Base(args.q),
        z(source<T>(args.z, in.shape.rows, V)),
        upstream(source<T>(args.upstream, in.shape.rows, V)),
        grad_z(target(args.grad_z, in.shape.rows * in.samples, in.shape.cols, V)),
        standard(args.prior ? T(1) : T(0)) {}

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
          const T near = b.near(sample, j), posterior_score = whitened(near, b.root[j]);
          const T far = b.far(sample, j), prior_score = b.prior_score(far, j);
          by_mu[j] += g[j] * posterior_score;
          by_scale[j] += g[j] * madd(near, near, T(-1));
          if constexpr (K::kPrior) {
            by_prior_mu[j] -= g[j] * prior_score;
            by_prior_scale[j] += g[j] * madd(-far, far, T(1));
          }
          g[j] *= prior_score - posterior_score;
        }
        if (grad_z) put<kStored, T, V>(grad_z, start + col + k * in.sample_size, n, g);
      }
      this->put_all(b.v, walk, col, n, by_mu, by_scale, by_prior_mu, by_prior_scale);
    }
  }
};

template <int kStored, int V>
bool suits(const MonteCarloKlArgs& args) {
  const int64_t rows = args.q.shape.rows, cols = args.q.shape.cols;
  return plain_samples<kStored, V>(args.q) &&
         known(source<float>(args.z, rows, V), rows, kStored, true) &&
         known(source<float>(args.upstream, rows, V), rows, kFloat, true) &&
         known(target(args.grad_z, rows * args.q.samples, cols, V), kStored);
}

template <template <class> class Op>
void choose_for(const MonteCarloKlArgs& args, const cuda::Place& place) {
  choose<Op>(args, args.prior && has_prior(args.q), suits<kFloat, 4>(args), suits<kHalf, 8>(args),
             place);
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::monte_carlo_kl(const MonteCarloKlArgs& args, const Place& place) {
  VAEFAST_ISA::choose_for<VAEFAST_ISA::MonteCarloKl>(args, place);
}

void cuda::monte_carlo_kl_backward(const MonteCarloKlArgs& args, const Place& place) {
  VAEFAST_ISA::choose_for<VAEFAST_ISA::MonteCarloKlBackward>(args, place);
}

int64_t cuda::monte_carlo_kl_workspace(const MonteCarloKlArgs& args) {
  return VAEFAST_ISA::samples_workspace(args.q);
}

}  // namespace vaefast
