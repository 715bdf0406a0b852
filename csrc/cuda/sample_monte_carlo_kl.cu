// z = mu + temperature sigma eps and log q(z|x) - log p(z) at each sample, forward and backward.
//
// Per element, with near = (z - mu) / sigma = temperature eps and sigma_p the prior's sigma:
//   0.5 (((z - prior_mu) / sigma_p)^2 - near^2 - (logvar - prior_logvar)).
#include "cuda/samples.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// V elements of q and p, with the square root of 1 / sigma_p.
template <class K>
struct Latent {
  using T = typename K::T;
  static constexpr int V = K::V;
  Vector<K> v;
  T spread[V], root[K::kPrior ? V : 1];

  VAEFAST_MEMBER void read(const Inputs<K>& in, const InputRows<K>& rows, int col, int n) {
    v.read(in, rows, col, n);
    v.deviate();
#pragma unroll
    for (int j = 0; j < V; ++j) spread[j] = in.temperature * v.q.std[j];
    if constexpr (K::kPrior) {
#pragma unroll
      for (int j = 0; j < V; ++j) root[j] = whitening_root(v.prior.logvar[j]);
    }
  }

  VAEFAST_MEMBER T sample(T eps, int j) const { return madd(spread[j], eps, v.mu[j]); }

  // x / sigma_p.
  VAEFAST_MEMBER T scaled(T x, int j) const {
    if constexpr (K::kPrior) return whitened(x, root[j]);
    return x;
  }

  VAEFAST_MEMBER T far(T z, int j) const {
    if constexpr (K::kPrior) return scaled(z - v.prior_mu[j], j);
    return z;
  }

  VAEFAST_MEMBER T constant(int j) const {
    if constexpr (K::kPrior) return v.q.logvar[j] - v.prior.logvar[j];
    return v.q.logvar[j];
  }
};

template <class K>
struct SampleMonteCarloKl : SampleSums<K> {
  using Base = SampleSums<K>;
  using T = typename K::T;
  using Base::in;
  using Base::rows;
  static constexpr int kStored = K::kStored, V = K::V;
  Target z;

  explicit SampleMonteCarloKl(const SampleMonteCarloKlArgs& args)
      : Base(args.q, args.q.kl),
        z(target(args.q.z, in.shape.rows * in.samples, in.shape.cols, V)) {}

  VAEFAST_MEMBER void run(int64_t unit, int lane, T* sums) const {
    int64_t place;
    const int64_t k = this->first(unit, place);
    const Walk walk = rows.template walk<V>(place, lane);
    InputRows<K> at;
    at.enter_row(in, walk.row, walk.first);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      if constexpr (K::kPrior) at.enter_row(in, anew(walk.row), walk.first);
      Latent<K> b;
      b.read(in, at, col, n);
      // One after the other: a sample's noise and values need the registers of the one before.
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (k + i >= in.samples) continue;
        T eps[V], kl[V];
        const int64_t row = K::kPrior ? anew(walk.row) : walk.row;
        epsilon(in, at, row, walk.first, col, k + i, n, eps);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const T near = in.temperature * eps[j];
          eps[j] = b.sample(eps[j], j);
          const T far = b.far(eps[j], j);
          kl[j] = madd(T(-0.5), b.constant(j), half_difference_of_squares(far, near));
        }
        const int64_t start = row * in.shape.cols + walk.first;
        put<kStored, T, V>(z, start + col + (k + i) * in.sample_size, n, eps);
        sums[i] += sum_of<T, V>(kl, n);
      }
    }
  }
};

// With the noise made anew.
template <class K>
struct SampleMonteCarloKlBackward : SampleGradients<K> {
  using Base = SampleGradients<K>;
  using T = typename K::T;
  using Base::in;
  using Base::kUpstream;
  using Base::rows;
  static constexpr int kStored = K::kStored, V = K::V;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  // In the registers of two blocks ptxas spills 80 bytes there.
  static constexpr int kBlocksPerSm = K::kPrior ? 1 : Base::kBlocksPerSm;
#endif
  Source grad_z, grad_kl;
  bool stop;

  explicit SampleMonteCarloKlBackward(const SampleMonteCarloKlArgs& args)
      : Base(args.q),
        grad_z(source<T>(args.q.grad_z, in.shape.rows, V)),
        grad_kl(source<T>(args.q.grad_kl, in.shape.rows, V)),
        stop(args.stop_posterior) {}

  VAEFAST_MEMBER void run(int64_t unit, int lane, T*) const {
    const Walk walk = rows.template walk<V>(unit, lane);
    InputRows<K> at;
    at.enter_row(in, walk.row, walk.first);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      if constexpr (K::kPrior) at.enter_row(in, anew(walk.row), walk.first);
      Latent<K> b;
      b.read(in, at, col, n);
      T by_mu[V] = {}, by_scale[V] = {};
      T by_prior_mu[K::kPrior ? V : 1] = {}, by_prior_scale[K::kPrior ? V : 1] = {};
#pragma unroll 1
      for (int k = 0; k < in.samples; ++k) {
        Raw<T, V> raw_z, raw_kl;
        const int64_t row = K::kPrior ? anew(walk.row) : walk.row;
        const char* z_row = enter<kStored>(grad_z, row, walk.first, k);
        const char* kl_row = enter<kUpstream>(grad_kl, row, walk.first, k);
        fetch<kStored, true>(grad_z, z_row, col, n, raw_z);
        fetch<kUpstream, true>(grad_kl, kl_row, col, n, raw_kl);
        T eps[V], by_z[V], g[V];
        epsilon(in, at, row, walk.first, col, k, n, eps);
        // An absent gradient is decoded as zeros.
        decode<kStored, true>(grad_z, raw_z, by_z);
        decode<kUpstream, true>(grad_kl, raw_kl, g);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const T far = b.far(b.sample(eps[j], j), j), prior_score = b.scaled(far, j);
          // sigma times the gradient in z may be 0 times infinity, so z - mu is a factor at once.
          const T near = in.temperature * eps[j], noise = b.spread[j] * eps[j];
          const T posterior_score = stop ? whitened(near, whitening_root(b.v.q.logvar[j])) : T(0);
          const T grown = b.scaled(noise, j) * far - (stop ? near * near : T(1));
          by_mu[j] += madd(g[j], prior_score - posterior_score, by_z[j]);
          by_scale[j] += madd(g[j], grown, noise * by_z[j]);
          if constexpr (K::kPrior) {
            by_prior_mu[j] -= g[j] * prior_score;
            by_prior_scale[j] += g[j] * madd(-far, far, T(1));
          }
        }
      }
      this->put_all(b.v, walk, col, n, by_mu, by_scale, by_prior_mu, by_prior_scale);
    }
  }
};

template <int kStored, int V>
bool suits(const SampleMonteCarloKlArgs& args) {
  const SampleKlArgs& q = args.q;
  const int64_t rows = q.shape.rows, cols = q.shape.cols;
  return plain_samples<kStored, V>(q) && known(target(q.z, rows * q.samples, cols, V), kStored) &&
         known(source<float>(q.grad_z, rows, V), rows, kStored, true) &&
         known(source<float>(q.grad_kl, rows, V), rows, kFloat, true);
}

template <template <class> class Op>
void choose_for(const SampleMonteCarloKlArgs& args, const cuda::Place& place) {
  choose<Op>(args, has_prior(args.q), suits<kFloat, 4>(args), suits<kHalf, 8>(args), place);
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::sample_monte_carlo_kl(const SampleMonteCarloKlArgs& args, const Place& place) {
  VAEFAST_ISA::choose_for<VAEFAST_ISA::SampleMonteCarloKl>(args, place);
}

void cuda::sample_monte_carlo_kl_backward(const SampleMonteCarloKlArgs& args, const Place& place) {
  VAEFAST_ISA::choose_for<VAEFAST_ISA::SampleMonteCarloKlBackward>(args, place);
}

int64_t cuda::sample_monte_carlo_kl_workspace(const SampleMonteCarloKlArgs& args) {
  return VAEFAST_ISA::samples_workspace(args.q);
}

}  // namespace vaefast
