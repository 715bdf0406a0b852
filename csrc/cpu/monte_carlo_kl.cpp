// log q(z|x) - log p(z) of given samples and diagonal Gaussians, forward and backward, on the CPU.
#include "cpu/kernels.h"
#include "cpu/posterior.h"
#include "cpu/sums.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// Per element, with `rate` 1 / sigma of q and of p:
//   0.5 (((z - prior_mu) rate_p)^2 - ((z - mu) rate_q)^2 - constant).
// Without a prior of the caller's own rate_p is 1, for N(0, I), or 0, so that log q remains: then
// nothing of the prior is read, as the buffers of a tile would no longer fit the L1 cache. In a
// tile with an outlier (`far`) the rates' square roots stand in their place.
template <class T>
struct Densities {
  Posterior<T> q;
  T rate[kTile<T>], prior_rate[kTile<T>], constant_buffer[kTile<T>];
  const T *mu, *prior_mu, *constant;
  bool prior, far;
  T standard, rest;

  void load_tile(const MonteCarloKlArgs& args, const Tile& tile) {
    const int64_t n = tile.size();
    q.load_tile(args.q, tile, false);
    mu = q.mu;
    constant = q.scale.logvar;
    prior = args.prior && has_prior(args.q);
    standard = args.prior ? T(1) : T(0);
    rest = args.prior ? T(0) : T(kLog2Pi);
    far = !all_below(n, constant, kUsualLogvar<T>) ||
          (prior && !all_below(n, q.prior.logvar, kUsualLogvar<T>));
    fill_rate(n, constant, rate);
    if (!prior) return;
    prior_mu = q.prior_mu;
    const T* prior_logvar = q.prior.logvar;
    fill_rate(n, prior_logvar, prior_rate);
    for (int64_t i = 0; i < n; ++i) constant_buffer[i] = constant[i] - prior_logvar[i];
    constant = constant_buffer;
  }

  void fill_rate(int64_t n, const T* logvar, T* __restrict to) const {
    const T power = far ? T(-0.25) : T(-0.5);
    for (int64_t i = 0; i < n; ++i) to[i] = exp_finite(power * logvar[i]);
  }

  // x / sigma.
  template <bool kFar>
  static T scaled(T x, T rate) {
    if constexpr (kFar) return whitened(x, rate);
    return x * rate;
  }

  template <bool kFar>
  T near(const T* z, int64_t i) const {
    return scaled<kFar>(z[i] - mu[i], rate[i]);
  }

  template <bool kPrior, bool kFar>
  T away(const T* z, int64_t i) const {
    if constexpr (kPrior) return scaled<kFar>(z[i] - prior_mu[i], prior_rate[i]);
    return z[i] * standard;
  }

  template <bool kPrior, bool kFar>
  T prior_score(T away, int64_t i) const {
    if constexpr (kPrior) return scaled<kFar>(away, prior_rate[i]);
    return away;
  }
};

template <bool kPrior, bool kFar, class T>
void estimates(const Densities<T>& b, int64_t n, const T* z, T* __restrict value) {
  const T rest = b.rest;
  for (int64_t i = 0; i < n; ++i) {
    const T near = b.template near<kFar>(z, i), away = b.template away<kPrior, kFar>(z, i);
    value[i] = madd(T(-0.5), b.constant[i] + rest, half_difference_of_squares(away, near));
  }
}

template <class T>
void estimates_any(const Densities<T>& b, int64_t n, const T* z, T* __restrict value) {
  if (b.far)
    return b.prior ? estimates<true, true>(b, n, z, value) : estimates<false, true>(b, n, z, value);
  b.prior ? estimates<true, false>(b, n, z, value) : estimates<false, false>(b, n, z, value);
}

template <class T>
bool forward(const MonteCarloKlArgs& args) {
  const SampleKlArgs& q = args.q;
  const Tiling tiling(q.shape, kTile<T>);
  const int64_t n_slots = slots(tiling);
  Partials partials(q.samples * n_slots);
  if (partials.failed()) return false;
  double* slot = partials.get();
#pragma omp parallel num_threads(q.threads) if (q.threads > 1)
  {
    Densities<T> b;
    T buffer[kTile<T>], value[kTile<T>];
#pragma omp for schedule(static) nowait
    for (int64_t index = 0; index < tiling.count; ++index) {
      const Tile tile = tiling.tile(index);
      const int64_t n = tile.size();
      b.load_tile(args, tile);
      for (int64_t k = 0; k < q.samples; ++k) {
        Prefetch prefetch;
        if (k + 1 < q.samples) prefetch.read(args.z, of_sample(tile, k + 1, q.shape));
        prefetch.issue(0, n);
        const T* z = load(args.z, of_sample(tile, k, q.shape), buffer);
        estimates_any(b, n, z, value);
        sum_rows(tiling, index, tile, value, slot + k * n_slots);
      }
    }
  }
  const int64_t posteriors = q.shape.segments > 0 ? q.shape.rows / q.shape.segments : 0;
  for (int64_t k = 0; k < q.samples; ++k)
    samples_from(tiling, slot + k * n_slots, 1.0, static_cast<T*>(args.value) + k * posteriors);
  return true;
}

template <class T>
struct Gradients {
  T mu[kTile<T>], scale[kTile<T>], prior_mu[kTile<T>], prior_scale[kTile<T>];
};

template <bool kPrior, bool kFar, class T>
void gradients(const Densities<T>& b, int64_t n, const T* z, const T* upstream, T* __restrict out,
               T* __restrict mu, T* __restrict scale) {
  for (int64_t i = 0; i < n; ++i) {
    const T g = upstream[i], near = b.template near<kFar>(z, i);
    const T posterior_score = b.template scaled<kFar>(near, b.rate[i]);
    out[i] = g * (b.template prior_score<kPrior, kFar>(b.template away<kPrior, kFar>(z, i), i) -
                  posterior_score);
    mu[i] += g * posterior_score;
    scale[i] += g * madd(near, near, T(-1));
  }
}

template <class T>
void gradients_any(const Densities<T>& b, int64_t n, const T* z, const T* upstream,
                   T* __restrict out, T* __restrict mu, T* __restrict scale) {
  if (b.far) {
    b.prior ? gradients<true, true>(b, n, z, upstream, out, mu, scale)
            : gradients<false, true>(b, n, z, upstream, out, mu, scale);
  } else {
    b.prior ? gradients<true, false>(b, n, z, upstream, out, mu, scale)
            : gradients<false, false>(b, n, z, upstream, out, mu, scale);
  }
}

// The sums of the prior's own gradients.
template <bool kFar, class T>
void prior_gradients(const Densities<T>& b, int64_t n, const T* z, const T* upstream,
                     T* __restrict mu, T* __restrict scale) {
  for (int64_t i = 0; i < n; ++i) {
    const T g = upstream[i], away = b.template away<true, kFar>(z, i);
    mu[i] -= g * b.template prior_score<true, kFar>(away, i);
    scale[i] += g * madd(-away, away, T(1));
  }
}

// Adds sample k's part to the parameters' gradients and puts out z's.
template <class T>
void sample_gradients(const MonteCarloKlArgs& args, const Tile& tile, int64_t k,
                      const Densities<T>& b, T* z_buffer, T* upstream_buffer, T* out_buffer,
                      Gradients<T>& sums) {
  const int64_t n = tile.size();
  const Tile place = of_sample(tile, k, args.q.shape);
  Prefetch prefetch;
  if (k + 1 < args.q.samples) {
    const Tile next = of_sample(tile, k + 1, args.q.shape);
    prefetch.read(args.z, next);
    prefetch.write(args.grad_z, next.start(args.q.shape));
  }
  prefetch.issue(0, n);
  const T* z = load(args.z, place, z_buffer);
  const T* upstream = load(args.upstream, place, upstream_buffer);
  const int64_t start = place.start(args.q.shape);
  T* out = args.grad_z ? destination(args.grad_z, start, out_buffer) : out_buffer;
  gradients_any(b, n, z, upstream, out, sums.mu, sums.scale);
  if (args.q.grad_prior_mu || args.q.grad_prior_scale) {
    b.far ? prior_gradients<true>(b, n, z, upstream, sums.prior_mu, sums.prior_scale)
          : prior_gradients<false>(b, n, z, upstream, sums.prior_mu, sums.prior_scale);
  }
  if (args.grad_z) finish(args.grad_z, start, n, out);
}

template <class T>
void put(const Output& out, int64_t start, int64_t n, const T* values, T factor, const T* slope,
         T* buffer) {
  if (!out) return;
  T* to = destination(out, start, buffer);
  if (slope != nullptr) {
    for (int64_t i = 0; i < n; ++i) to[i] = factor * values[i] * slope[i];
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = factor * values[i];
  }
  finish(out, start, n, to);
}

template <class T>
bool backward(const MonteCarloKlArgs& args) {
  const SampleKlArgs& q = args.q;
  const Tiling tiling(q.shape, kTile<T>);
#pragma omp parallel num_threads(q.threads) if (q.threads > 1)
  {
    Densities<T> b;
    Gradients<T> sums;
    T z_buffer[kTile<T>], upstream_buffer[kTile<T>], out_buffer[kTile<T>];
#pragma omp for schedule(static) nowait
    for (int64_t index = 0; index < tiling.count; ++index) {
      const Tile tile = tiling.tile(index);
      const int64_t n = tile.size(), start = tile.start(q.shape);
      b.load_tile(args, tile);
      memset(&sums, 0, sizeof sums);
      for (int64_t k = 0; k < q.samples; ++k)
        sample_gradients(args, tile, k, b, z_buffer, upstream_buffer, out_buffer, sums);
      put<T>(q.grad_mu, start, n, sums.mu, T(1), nullptr, out_buffer);
      put<T>(q.grad_scale, start, n, sums.scale, T(0.5), b.q.scale.slope, out_buffer);
      put<T>(q.grad_prior_mu, start, n, sums.prior_mu, T(1), nullptr, out_buffer);
      const T* slope = q.prior_scale ? b.q.prior.slope : nullptr;
      put<T>(q.grad_prior_scale, start, n, sums.prior_scale, T(0.5), slope, out_buffer);
    }
  }
  return true;
}

}  // namespace

bool monte_carlo_kl(const MonteCarloKlArgs& args) {
  return args.q.wide ? forward<double>(args) : forward<float>(args);
}

bool monte_carlo_kl_backward(const MonteCarloKlArgs& args) {
  return args.q.wide ? backward<double>(args) : backward<float>(args);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
