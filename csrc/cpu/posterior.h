// The posterior and the prior over one tile, their scale parameters transformed.
#pragma once

#include "cpu/tile.h"
#include "math/gaussian.h"

namespace vaefast {
namespace VAEFAST_ISA {

template <class T>
struct ScaleBuffers {
  T raw[kTile<T>], logvar[kTile<T>], std[kTile<T>], slope[kTile<T>];
};

// A scale parameter's tile after its transform. `slope` is set where the caller wants it.
template <class T>
struct ScaleTile {
  const T* logvar;
  const T* std;
  const T* slope;
};

template <Param kParam, Clamp kClamp, class T>
static void transform(const SampleKlArgs& args, const T* raw, int64_t n, ScaleBuffers<T>& b) {
  const T low = T(args.low), high = T(args.high), min_std = T(args.min_std);
  for (int64_t i = 0; i < n; ++i) {
    T s = raw[i], bend = T(1);
    if constexpr (kClamp == Clamp::kHard) s = clamp_hard(s, low, high, bend);
    if constexpr (kClamp == Clamp::kSoft) s = clamp_soft(s, low, high, bend);
    const Scale<T> scale = scale_of<kParam>(s, bend, min_std);
    b.logvar[i] = scale.logvar;
    b.std[i] = scale.std;
    b.slope[i] = scale.slope;
  }
}

template <Param kParam, class T>
static void transform_clamped(const SampleKlArgs& args, Clamp clamp, const T* raw, int64_t n,
                              ScaleBuffers<T>& b) {
  switch (clamp) {
    case Clamp::kNone:
      return transform<kParam, Clamp::kNone>(args, raw, n, b);
    case Clamp::kHard:
      return transform<kParam, Clamp::kHard>(args, raw, n, b);
    case Clamp::kSoft:
      return transform<kParam, Clamp::kSoft>(args, raw, n, b);
  }
}

template <class T>
static ScaleTile<T> load_scale(const SampleKlArgs& args, const View& view, Clamp clamp,
                               const Tile& tile, bool want_std, ScaleBuffers<T>& b) {
  const T* raw = load(view, tile, b.raw);
  const int64_t n = tile.size();
  if (args.param == Param::kLogvar && clamp == Clamp::kNone) {
    if (want_std)
      for (int64_t i = 0; i < n; ++i) b.std[i] = exp(T(0.5) * raw[i]);
    return {raw, b.std, nullptr};
  }
  switch (args.param) {
    case Param::kLogvar:
      transform_clamped<Param::kLogvar>(args, clamp, raw, n, b);
      break;
    case Param::kLogStd:
      transform_clamped<Param::kLogStd>(args, clamp, raw, n, b);
      break;
    case Param::kStd:
      transform_clamped<Param::kStd>(args, clamp, raw, n, b);
      break;
    case Param::kVar:
      transform_clamped<Param::kVar>(args, clamp, raw, n, b);
      break;
    case Param::kSoftplus:
      transform_clamped<Param::kSoftplus>(args, clamp, raw, n, b);
      break;
  }
  return {b.logvar, b.std, b.slope};
}

// The posterior and the prior over one tile.
template <class T>
struct Posterior {
  ScaleBuffers<T> scale_buffers, prior_buffers;
  T mu_buffer[kTile<T>], prior_mu_buffer[kTile<T>];
  const T *mu, *prior_mu;
  ScaleTile<T> scale, prior;

  void load_tile(const SampleKlArgs& args, const Tile& tile, bool want_std) {
    mu = load(args.mu, tile, mu_buffer);
    scale = load_scale(args, args.scale, args.clamp, tile, want_std, scale_buffers);
    const int64_t n = tile.size();
    if (!args.prior_mu && !args.prior_scale) return;
    if (args.prior_mu) {
      prior_mu = load(args.prior_mu, tile, prior_mu_buffer);
    } else {
      for (int64_t i = 0; i < n; ++i) prior_mu_buffer[i] = T(0);
      prior_mu = prior_mu_buffer;
    }
    if (args.prior_scale) {
      prior = load_scale(args, args.prior_scale, Clamp::kNone, tile, false, prior_buffers);
    } else {
      for (int64_t i = 0; i < n; ++i) prior_buffers.logvar[i] = T(0);
      prior = {prior_buffers.logvar, nullptr, nullptr};
    }
  }
};

VAEFAST_FN bool has_prior(const SampleKlArgs& args) { return args.prior_mu || args.prior_scale; }

}  // namespace VAEFAST_ISA
}  // namespace vaefast
