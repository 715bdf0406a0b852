// The diagonal Gaussian posterior and its prior, V elements at a time, for both passes.
#pragma once

#include "cuda/stream.cuh"
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
  T low, high, min_std;

  explicit Transform(const SampleKlArgs& args)
      : param(args.param),
        clamp(args.clamp),
        low(T(args.low)),
        high(T(args.high)),
        min_std(T(args.min_std)) {}

  template <Param kParam, int V>
  VAEFAST_MEMBER void apply_as(const T* s, const T* bend, Scales<T, V>& out) const {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Scale<T> scale = scale_of<kParam>(s[j], bend[j], min_std);
      out.logvar[j] = scale.logvar;
      out.std[j] = scale.std;
      out.slope[j] = scale.slope;
    }
  }

  template <int V>
  VAEFAST_MEMBER void apply(T* s, bool clamped, Scales<T, V>& out) const {
    T bend[V];
    const Clamp how = clamped ? clamp : Clamp::kNone;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      bend[j] = T(1);
      if (how == Clamp::kHard) s[j] = clamp_hard(s[j], low, high, bend[j]);
      if (how == Clamp::kSoft) s[j] = clamp_soft(s[j], low, high, bend[j]);
    }
    switch (param) {
      case Param::kLogvar:
        return apply_as<Param::kLogvar, V>(s, bend, out);
      case Param::kLogStd:
        return apply_as<Param::kLogStd, V>(s, bend, out);
      case Param::kStd:
        return apply_as<Param::kStd, V>(s, bend, out);
      case Param::kVar:
        return apply_as<Param::kVar, V>(s, bend, out);
      case Param::kSoftplus:
        return apply_as<Param::kSoftplus, V>(s, bend, out);
    }
  }
};

// What both passes read. kPlain: a logvar without clamp, prior, mask, weight, injected noise and
// streams per sample; mu and scale are then stored as kStored says.
template <class T, int kStored, int V>
struct Inputs {
  static constexpr bool kPlain = kStored != kAny;
  Shape shape;
  Source mu, scale, prior_mu, prior_scale, mask, weight, noise;
  Stream stream;
  Transform<T> transform;
  T temperature;
  int64_t samples;

  explicit Inputs(const SampleKlArgs& args)
      : shape(args.shape),
        mu(source<T>(args.mu, args.shape.rows, V)),
        scale(source<T>(args.scale, args.shape.rows, V)),
        prior_mu(source<T>(args.prior_mu, args.shape.rows, V)),
        prior_scale(source<T>(args.prior_scale, args.shape.rows, V)),
        mask(source<T>(args.mask, args.shape.rows, V)),
        weight(source<T>(args.weight, args.shape.rows, V)),
        noise(source<T>(args.noise, args.shape.rows, V)),
        stream(args.stream),
        transform(args),
        temperature(T(args.temperature)),
        samples(args.samples) {}

  VAEFAST_MEMBER bool has_prior() const { return !kPlain && (prior_mu || prior_scale); }
};

// The inputs' rows under one row of the grid.
template <class T, int kStored, int V>
struct InputRows {
  static constexpr bool kPlain = kStored != kAny;
  Row<T> mu, scale, prior_mu, prior_scale, mask, weight;
  StreamRow stream;

  VAEFAST_MEMBER void enter_row(const Inputs<T, kStored, V>& in, int64_t row, int64_t col) {
    mu = enter<kStored, kStored, T>(in.mu, row, col);
    scale = enter<kStored, kStored, T>(in.scale, row, col);
    stream = {};
    if (in.stream.state != nullptr) stream = enter<!kPlain>(in.stream, in.shape, row, col);
    if constexpr (!kPlain) {
      prior_mu = enter<kAny, kAny, T>(in.prior_mu, row, col);
      prior_scale = enter<kAny, kAny, T>(in.prior_scale, row, col);
      mask = enter<kAny, kAny, T>(in.mask, row, col);
      weight = enter<kAny, kAny, T>(in.weight, row, col);
    }
  }
};

// V elements of the inputs.
template <class T, int kStored, int V>
struct Vector {
  static constexpr bool kPlain = kStored != kAny;
  T mu[V], prior_mu[V], keep[V], weight[V];
  Scales<T, V> q, prior;

  VAEFAST_MEMBER void read(const Inputs<T, kStored, V>& in, const InputRows<T, kStored, V>& rows,
                           int col, int n) {
    Raw<T, V> raw_mu, raw_scale, raw_prior_mu, raw_prior_scale, raw_mask, raw_weight;
    fetch<kStored, !kPlain>(in.mu, rows.mu, col, n, raw_mu);
    fetch<kStored, !kPlain>(in.scale, rows.scale, col, n, raw_scale);
    if constexpr (!kPlain) {
      fetch<kAny, true>(in.prior_mu, rows.prior_mu, col, n, raw_prior_mu);
      fetch<kAny, true>(in.prior_scale, rows.prior_scale, col, n, raw_prior_scale);
      fetch<kAny, true>(in.mask, rows.mask, col, n, raw_mask);
      fetch<kAny, true>(in.weight, rows.weight, col, n, raw_weight);
    }
    decode<kStored, !kPlain>(in.mu, rows.mu, raw_mu, mu);
    T s[V];
    decode<kStored, !kPlain>(in.scale, rows.scale, raw_scale, s);
    if constexpr (kPlain) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const Scale<T> scale = scale_of<Param::kLogvar>(s[j], T(1), T(0));
        q.logvar[j] = scale.logvar;
        q.std[j] = scale.std;
        q.slope[j] = T(1);
      }
    } else {
      in.transform.template apply<V>(s, true, q);
      decode<kAny, true>(in.prior_mu, rows.prior_mu, raw_prior_mu, prior_mu);
      decode<kAny, true>(in.mask, rows.mask, raw_mask, keep);
      decode<kAny, true>(in.weight, rows.weight, raw_weight, weight);
      if (in.prior_scale) {
        decode<kAny, true>(in.prior_scale, rows.prior_scale, raw_prior_scale, s);
        in.transform.template apply<V>(s, false, prior);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) prior.logvar[j] = prior.slope[j] = T(0);
      }
    }
  }

  VAEFAST_MEMBER bool keeps(const Inputs<T, kStored, V>& in, int j) const {
    return kPlain || !in.mask || keep[j] != T(0);
  }
};

// The normals of the k-th sample.
template <class T, int kStored, int V>
VAEFAST_FN void epsilon(const Inputs<T, kStored, V>& in, const InputRows<T, kStored, V>& rows,
                        int64_t row, int64_t first, int col, int64_t k, int n, T* eps) {
  if constexpr (kStored == kAny) {
    if (in.noise) {
      const Row<T> place = enter<kAny, kAny, T>(in.noise, row, first, k);
      Raw<T, V> raw;
      fetch<kAny, true>(in.noise, place, col, n, raw);
      return decode<kAny, true>(in.noise, place, raw, eps);
    }
  }
  stream_values<true, T, V>(rows.stream.seed, rows.stream.first + static_cast<uint64_t>(col),
                            static_cast<uint32_t>(k), static_cast<uint32_t>(Purpose::kPosterior),
                            eps);
}

// True where the kernels with kPlain serve, as far as both passes are concerned.
template <int V>
bool plain(const SampleKlArgs& args, DType dtype) {
  return !args.wide && args.param == Param::kLogvar && args.clamp == Clamp::kNone &&
         !args.prior_mu && !args.prior_scale && !args.mask && !args.weight && !args.noise &&
         !args.stream.per_sample &&
         known(source<float>(args.mu, args.shape.rows, V), args.shape.rows, dtype, false) &&
         known(source<float>(args.scale, args.shape.rows, V), args.shape.rows, dtype, false);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
