// The diagonal Gaussian posterior and its prior, V elements at a time, for both passes.
#pragma once

#include "cuda/noise.cuh"
#include "math/gaussian.h"

namespace vaefast {
namespace VAEFAST_ISA {

// A scale parameter after its transform: see Scale in math/gaussian.h.
template <class T, int V>
struct Scales {
  T logvar[V], std[V], slope[V];
};

template <class T>
struct Transform {
  Param param;
  Clamp clamp;
  ScaleNumbers<T> numbers;

  explicit Transform(const SampleKlArgs& args)
      : param(args.param), clamp(args.clamp), numbers(args) {}

  template <Param kParam, int V>
  VAEFAST_MEMBER void apply_as(const T* s, const T* clamp_grad, Scales<T, V>& out) const {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Scale<T> scale = scale_of<kParam>(s[j], clamp_grad[j], numbers);
      out.logvar[j] = scale.logvar;
      out.std[j] = scale.std;
      out.slope[j] = scale.slope;
    }
  }

  template <int V>
  VAEFAST_MEMBER void apply(T* s, bool clamped, Scales<T, V>& out) const {
    T clamp_grad[V];
    const Clamp how = clamped ? clamp : Clamp::kNone;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      clamp_grad[j] = T(1);
      if (how == Clamp::kHard) s[j] = clamp_hard(s[j], numbers.low, numbers.high, clamp_grad[j]);
    }
    if (how == Clamp::kSoft) {
      // One after the other: side by side they take registers that a prior has filled.
#pragma unroll 1
      for (int i = 0; i < V; ++i) {
        T slope;
        const T value = clamp_soft(pick<V>(s, i), numbers.low, numbers.high, slope);
        place<V>(s, i, true, value);
        place<V>(clamp_grad, i, true, slope);
      }
    }
    switch (param) {
      case Param::kLogvar:
        return apply_as<Param::kLogvar, V>(s, clamp_grad, out);
      case Param::kLogStd:
        return apply_as<Param::kLogStd, V>(s, clamp_grad, out);
      case Param::kStd:
        return apply_as<Param::kStd, V>(s, clamp_grad, out);
      case Param::kVar:
        return apply_as<Param::kVar, V>(s, clamp_grad, out);
      case Param::kSoftplus:
        return apply_as<Param::kSoftplus, V>(s, clamp_grad, out);
    }
  }
};

// A variant of both passes' kernels: the compute type, elements to a vector, whether there is a
// prior, and kStored, how mu, scale, z and their gradients are stored. Where that is not kAny the
// call is plain: a logvar without clamp, prior, mask, weight, injected noise and streams per
// sample.
template <class Compute, int kStorage, int kVector, bool kHasPrior>
struct Variant {
  using T = Compute;
  static constexpr int kStored = kStorage, V = kVector;
  static constexpr bool kPrior = kHasPrior, kPlain = kStored != kAny;
};

// What both passes read.
template <class K>
struct Inputs {
  using T = typename K::T;
  static constexpr int V = K::V;
  Shape shape;
  Source mu, scale, prior_mu, prior_scale, mask, weight, noise;
  NoiseState state;
  Transform<T> transform;
  T temperature;
  int samples;
  // Between one sample of z and the next.
  int64_t sample_size;

  explicit Inputs(const SampleKlArgs& args)
      : shape(args.shape),
        mu(source<T>(args.mu, args.shape.rows, V)),
        scale(source<T>(args.scale, args.shape.rows, V)),
        prior_mu(source<T>(args.prior_mu, args.shape.rows, V)),
        prior_scale(source<T>(args.prior_scale, args.shape.rows, V)),
        mask(source<T>(args.mask, args.shape.rows, V)),
        weight(source<T>(args.weight, args.shape.rows, V)),
        noise(source<T>(args.noise, args.shape.rows, V)),
        state(args.state),
        transform(args),
        temperature(T(args.temperature)),
        samples(static_cast<int>(args.samples)),
        sample_size(args.shape.rows * args.shape.cols) {}
};

// The inputs' rows under one row of the grid.
template <class K>
struct InputRows {
  using T = typename K::T;
  static constexpr int kStored = K::kStored;
  static constexpr bool kPlain = K::kPlain;
  const char *mu, *scale, *prior_mu, *prior_scale, *mask, *weight;
  NoiseRow noise_row;

  VAEFAST_MEMBER void enter_row(const Inputs<K>& in, int64_t row, int64_t col) {
    enter_posterior(in, row, col);
    enter_others(in, row, col);
  }

  VAEFAST_MEMBER void enter_posterior(const Inputs<K>& in, int64_t row, int64_t col) {
    mu = enter<kStored>(in.mu, row, col);
    scale = enter<kStored>(in.scale, row, col);
    noise_row = {};
    if (in.state.words != nullptr) noise_row = enter<!kPlain>(in.state, in.shape, row, col);
    if constexpr (!kPlain) mask = enter<kAny>(in.mask, row, col);
  }

  // The prior's rows and the weight's.
  VAEFAST_MEMBER void enter_others(const Inputs<K>& in, int64_t row, int64_t col) {
    if constexpr (!kPlain) weight = enter<kAny>(in.weight, row, col);
    if constexpr (K::kPrior) {
      prior_mu = enter<kAny>(in.prior_mu, row, col);
      prior_scale = enter<kAny>(in.prior_scale, row, col);
    }
  }
};

// Keeps the compiler from working out beforehand what follows from a unit or a row, where its
// operands lie: with a prior their addresses fill more registers than two blocks leave a thread.
VAEFAST_FN int64_t anew(int64_t place) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(place));
#endif
  return place;
}

// V elements of the inputs.
template <class K>
struct Vector {
  using T = typename K::T;
  static constexpr int kStored = K::kStored, V = K::V;
  static constexpr bool kPlain = K::kPlain;
  T mu[V], prior_mu[V], weight[V];
  // A bit for each element that the mask keeps.
  uint32_t kept;
  // Whether a logvar of a plain call is not usual.
  bool odd;
  Scales<T, V> q, prior;

  VAEFAST_MEMBER void read(const Inputs<K>& in, const InputRows<K>& rows, int col, int n) {
    read_posterior(in, rows, col, n);
    read_others(in, rows, col, n);
  }

  VAEFAST_MEMBER void read_posterior(const Inputs<K>& in, const InputRows<K>& rows, int col,
                                     int n) {
    Raw<T, V> raw_mu, raw_scale;
    fetch<kStored, !kPlain>(in.mu, rows.mu, col, n, raw_mu);
    fetch<kStored, !kPlain>(in.scale, rows.scale, col, n, raw_scale);
    if constexpr (!kPlain) {
      Raw<T, V> raw_mask;
      T keep[V];
      fetch<kAny, true>(in.mask, rows.mask, col, n, raw_mask);
      decode<kAny, true>(in.mask, raw_mask, keep);
      kept = 0;
#pragma unroll
      for (int j = 0; j < V; ++j) kept |= static_cast<uint32_t>(keep[j] != T(0)) << j;
    }
    decode<kStored, !kPlain>(in.mu, raw_mu, mu);
    T s[V];
    decode<kStored, !kPlain>(in.scale, raw_scale, s);
    if constexpr (kPlain) {
      odd = false;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        q.logvar[j] = s[j];
        q.slope[j] = T(1);
        odd = odd || !usual_logvar(s[j]);
      }
    } else {
      in.transform.template apply<V>(s, true, q);
    }
  }

  // The prior and the weight. These loads wait for the transform: with all of them under way at
  // once there are spills.
  VAEFAST_MEMBER void read_others(const Inputs<K>& in, const InputRows<K>& rows, int col, int n) {
    if constexpr (K::kPrior) {
      T s[V];
      Raw<T, V> raw_prior_mu, raw_prior_scale;
      fetch<kAny, true>(in.prior_mu, rows.prior_mu, col, n, raw_prior_mu);
      fetch<kAny, true>(in.prior_scale, rows.prior_scale, col, n, raw_prior_scale);
      decode<kAny, true>(in.prior_mu, raw_prior_mu, prior_mu);
      decode<kAny, true>(in.prior_scale, raw_prior_scale, s);
      if (in.prior_scale) {
        in.transform.template apply<V>(s, false, prior);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) prior.logvar[j] = prior.slope[j] = T(0);
      }
    }
    if constexpr (!kPlain) {
      Raw<T, V> raw_weight;
      fetch<kAny, true>(in.weight, rows.weight, col, n, raw_weight);
      decode<kAny, true>(in.weight, raw_weight, weight);
    }
  }

  // of_logvar of a plain call's logvars, which are usual but for some, if any.
  template <class Made>
  VAEFAST_MEMBER void make(T* out) const {
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = Made::usual(q.logvar[j]);
    if (!rarely(odd)) return;
#pragma unroll 1
    for (int i = 0; i < V; ++i) {
      const T s = pick<V>(q.logvar, i);
      place<V>(out, i, !usual_logvar(s), Made::any(s));
    }
  }

  // The standard deviations, which a plain call has only where it asks for them.
  VAEFAST_MEMBER void deviate() {
    if constexpr (kPlain) make<StdOf>(q.std);
  }

  VAEFAST_MEMBER bool keeps(const Inputs<K>& in, int j) const {
    return kPlain || !in.mask || (kept >> j & 1u) != 0;
  }
};

// The normals of the k-th sample.
template <class K>
VAEFAST_FN void epsilon(const Inputs<K>& in, const InputRows<K>& rows, int64_t row, int64_t first,
                        int col, int64_t k, int n, typename K::T* eps) {
  using T = typename K::T;
  constexpr int V = K::V;
  if constexpr (!K::kPlain) {
    if (in.noise) {
      const char* place = enter<kAny>(in.noise, row, first, k);
      Raw<T, V> raw;
      fetch<kAny, true>(in.noise, place, col, n, raw);
      return decode<kAny, true>(in.noise, raw, eps);
    }
  }
  noise_values<true, T, V, K::kPlain>(
      rows.noise_row.seed, rows.noise_row.first + static_cast<uint64_t>(col),
      static_cast<uint32_t>(k), static_cast<uint32_t>(Purpose::kPosterior), eps);
}

// True where the kernels with kPlain serve, as far as both passes are concerned.
inline bool has_prior(const SampleKlArgs& args) { return args.prior_mu || args.prior_scale; }

template <int V>
bool plain(const SampleKlArgs& args, int stored) {
  return !args.wide && args.param == Param::kLogvar && args.clamp == Clamp::kNone &&
         !has_prior(args) && !args.mask && !args.weight && !args.noise && !args.state.per_sample &&
         known(source<float>(args.mu, args.shape.rows, V), args.shape.rows, stored, false) &&
         known(source<float>(args.scale, args.shape.rows, V), args.shape.rows, stored, false);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
