// z = mu + temperature sigma eps and log q(z|x) - log p(z) at each sample, forward and backward, on
// the CPU.
#include "cpu/kernels.h"
#include "cpu/sample_kl.h"
#include "cpu/sums.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// Per element, with near = (z - mu) / sigma = temperature eps, which no subtraction makes inexact,
// and `rate` the prior's 1 / sigma:
//   0.5 (((z - prior_mu) rate)^2 - near^2 - (logvar - prior_logvar)).
// In a tile with an outlier (`far`) the rate's square root stands in its place.
template <class T>
struct Latent {
  Posterior<T> q;
  NoiseBuffer<T> noise;
  T rate[kTile<T>], constant_buffer[kTile<T>];
  const T *mu, *std, *prior_mu, *constant;
  bool prior, far;
  T temperature;

  void load_tile(const SampleKlArgs& args, const Tile& tile) {
    const int64_t n = tile.size();
    q.load_tile(args, tile, true);
    mu = q.mu;
    std = q.scale.std;
    constant = q.scale.logvar;
    temperature = T(args.temperature);
    prior = has_prior(args);
    far = !all_below(n, constant, kUsualLogvar<T>) ||
          (prior && !all_below(n, q.prior.logvar, kUsualLogvar<T>));
    if (!prior) return;
    prior_mu = q.prior_mu;
    const T *logvar = q.scale.logvar, *prior_logvar = q.prior.logvar;
    const T power = far ? T(-0.25) : T(-0.5);
    for (int64_t i = 0; i < n; ++i) {
      rate[i] = exp_finite(power * prior_logvar[i]);
      constant_buffer[i] = logvar[i] - prior_logvar[i];
    }
    constant = constant_buffer;
  }

  T sample(T eps, int64_t i) const { return madd(temperature * std[i], eps, mu[i]); }

  // x over the prior's sigma.
  template <bool kPrior, bool kFar>
  T scaled(T x, int64_t i) const {
    if constexpr (!kPrior) return x;
    if constexpr (kFar) return whitened(x, rate[i]);
    return x * rate[i];
  }

  template <bool kPrior, bool kFar>
  T away(T z, int64_t i) const {
    if constexpr (kPrior) return scaled<kPrior, kFar>(z - prior_mu[i], i);
    return z;
  }
};

template <bool kPrior, bool kFar, class T>
void draw(const Latent<T>& b, int64_t n, const T* eps, T* __restrict z, T* __restrict kl) {
  for (int64_t i = 0; i < n; ++i) {
    z[i] = b.sample(eps[i], i);
    const T away = b.template away<kPrior, kFar>(z[i], i), near = b.temperature * eps[i];
    kl[i] = madd(T(-0.5), b.constant[i], half_difference_of_squares(away, near));
  }
}

template <class T>
void draw_any(const Latent<T>& b, int64_t n, const T* eps, T* __restrict z, T* __restrict kl) {
  if (!b.prior) return draw<false, false>(b, n, eps, z, kl);
  b.far ? draw<true, true>(b, n, eps, z, kl) : draw<true, false>(b, n, eps, z, kl);
}

template <class T>
struct ForwardBuffers {
  Latent<T> latent;
  T z[kTile<T>], kl[kTile<T>];
};

template <class T>
bool forward(const SampleKlArgs& args) {
  const Tiling tiling(args.shape, kTile<T>);
  const int64_t n_slots = slots(tiling), stride = args.shape.rows * args.shape.cols;
  Partials partials(args.samples * n_slots);
  if (partials.failed()) return false;
  double* slot = partials.get();
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  {
    ForwardBuffers<T> b;
#pragma omp for schedule(static) nowait
    for (int64_t index = 0; index < tiling.count; ++index) {
      const Tile tile = tiling.tile(index);
      const int64_t n = tile.size();
      b.latent.load_tile(args, tile);
      for (int64_t k = 0; k < args.samples; ++k) {
        const int64_t start = tile.start(args.shape) + k * stride;
        Prefetch prefetch;
        if (k + 1 < args.samples) prefetch.write(args.z, start + stride);
        prefetch.issue(0, n);
        const T* eps = load_noise(args, tile, k, b.latent.noise);
        T* z = destination(args.z, start, b.z);
        draw_any(b.latent, n, eps, z, b.kl);
        finish(args.z, start, n, z);
        sum_rows(tiling, index, tile, b.kl, slot + k * n_slots);
      }
    }
    nontemporal_fence();
  }
  const int64_t posteriors = args.shape.segments > 0 ? args.shape.rows / args.shape.segments : 0;
  for (int64_t k = 0; k < args.samples; ++k)
    samples_from(tiling, slot + k * n_slots, 1.0, static_cast<T*>(args.kl) + k * posteriors);
  return true;
}

// Sums over the samples: of z's gradient, of that times eps, of the KL's, and of the prior's.
template <class T>
struct Sums {
  T mu[kTile<T>], scale[kTile<T>], upstream[kTile<T>], prior_mu[kTile<T>], prior_scale[kTile<T>];
};

template <class T>
struct BackwardBuffers {
  Latent<T> latent;
  Sums<T> sums;
  T grad_z[kTile<T>], grad_kl[kTile<T>], out[kTile<T>];
};

// kStop: the score, which has mean zero, is left out: q's density then has a gradient in z.
// kFar: scale's sum gets z - mu as its factor at once, as sigma times the gradient in z may be 0
// times infinity.
template <bool kPrior, bool kFar, bool kStop, class T>
void gather(const Latent<T>& b, int64_t n, const T* eps, const T* grad_z, const T* grad_kl,
            Sums<T>& sums) {
  const T* logvar = b.q.scale.logvar;
  for (int64_t i = 0; i < n; ++i) {
    const T g = grad_kl[i], near = b.temperature * eps[i];
    const T away = b.template away<kPrior, kFar>(b.sample(eps[i], i), i);
    const T prior_score = b.template scaled<kPrior, kFar>(away, i);
    T slope = prior_score;
    if constexpr (kStop)
      slope -= kFar ? whitened(near, whitening_root(logvar[i])) : near / b.std[i];
    const T whole = madd(g, slope, grad_z[i]);
    sums.mu[i] += whole;
    if constexpr (kFar) {
      const T noise = b.std[i] * near;
      T grown = b.template scaled<kPrior, kFar>(noise, i) * away;
      if constexpr (kStop) grown = madd(-near, near, grown);
      sums.scale[i] += madd(g, grown, noise * grad_z[i]);
    } else {
      sums.scale[i] = madd(whole, eps[i], sums.scale[i]);
    }
    sums.upstream[i] += g;
    if constexpr (kPrior) {
      sums.prior_mu[i] -= g * prior_score;
      sums.prior_scale[i] += g * madd(-away, away, T(1));
    }
  }
}

template <bool kPrior, bool kFar, class T>
void gather_as(const Latent<T>& b, bool stop, int64_t n, const T* eps, const T* grad_z,
               const T* grad_kl, Sums<T>& sums) {
  stop ? gather<kPrior, kFar, true>(b, n, eps, grad_z, grad_kl, sums)
       : gather<kPrior, kFar, false>(b, n, eps, grad_z, grad_kl, sums);
}

template <class T>
void gather_any(const Latent<T>& b, bool stop, int64_t n, const T* eps, const T* grad_z,
                const T* grad_kl, Sums<T>& sums) {
  if (b.far) {
    b.prior ? gather_as<true, true>(b, stop, n, eps, grad_z, grad_kl, sums)
            : gather_as<false, true>(b, stop, n, eps, grad_z, grad_kl, sums);
  } else {
    b.prior ? gather_as<true, false>(b, stop, n, eps, grad_z, grad_kl, sums)
            : gather_as<false, false>(b, stop, n, eps, grad_z, grad_kl, sums);
  }
}

template <class T>
const T* load_or_zero(const View& view, const Tile& tile, T* buffer) {
  if (view) return load(view, tile, buffer);
  memset(buffer, 0, static_cast<size_t>(tile.size()) * sizeof(T));
  return buffer;
}

template <class T>
void put(const Output& out, int64_t start, int64_t n, const T* values, const T* slope, T* buffer) {
  if (!out) return;
  T* to = destination(out, start, buffer);
  for (int64_t i = 0; i < n; ++i) to[i] = values[i];
  if (slope != nullptr)
    for (int64_t i = 0; i < n; ++i) to[i] *= slope[i];
  finish(out, start, n, to);
}

template <class T>
bool backward(const SampleMonteCarloKlArgs& args) {
  const SampleKlArgs& q = args.q;
  const Tiling tiling(q.shape, kTile<T>);
#pragma omp parallel num_threads(q.threads) if (q.threads > 1)
  {
    BackwardBuffers<T> b;
    Sums<T>& sums = b.sums;
#pragma omp for schedule(static) nowait
    for (int64_t index = 0; index < tiling.count; ++index) {
      const Tile tile = tiling.tile(index);
      const int64_t n = tile.size(), start = tile.start(q.shape);
      b.latent.load_tile(q, tile);
      memset(&sums, 0, sizeof sums);
      for (int64_t k = 0; k < q.samples; ++k) {
        const Tile place = of_sample(tile, k, q.shape);
        Prefetch prefetch;
        if (k + 1 < q.samples && q.grad_z) prefetch.read(q.grad_z, of_sample(tile, k + 1, q.shape));
        prefetch.issue(0, n);
        const T* eps = load_noise(q, tile, k, b.latent.noise);
        const T* grad_z = load_or_zero(q.grad_z, place, b.grad_z);
        const T* grad_kl = load_or_zero(q.grad_kl, place, b.grad_kl);
        gather_any(b.latent, args.stop_posterior, n, eps, grad_z, grad_kl, sums);
      }
      const T kept = args.stop_posterior ? T(0) : T(1);
      const T* std = b.latent.std;
      for (int64_t i = 0; i < n; ++i) {
        const T spread = b.latent.far ? T(1) : b.latent.temperature * std[i];
        sums.scale[i] = T(0.5) * (spread * sums.scale[i] - kept * sums.upstream[i]);
        sums.prior_scale[i] *= T(0.5);
      }
      put<T>(q.grad_mu, start, n, sums.mu, nullptr, b.out);
      put<T>(q.grad_scale, start, n, sums.scale, b.latent.q.scale.slope, b.out);
      put<T>(q.grad_prior_mu, start, n, sums.prior_mu, nullptr, b.out);
      const T* slope = q.prior_scale ? b.latent.q.prior.slope : nullptr;
      put<T>(q.grad_prior_scale, start, n, sums.prior_scale, slope, b.out);
    }
  }
  return true;
}

}  // namespace

bool sample_monte_carlo_kl(const SampleMonteCarloKlArgs& args) {
  return args.q.wide ? forward<double>(args.q) : forward<float>(args.q);
}

bool sample_monte_carlo_kl_backward(const SampleMonteCarloKlArgs& args) {
  return args.q.wide ? backward<double>(args) : backward<float>(args);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
