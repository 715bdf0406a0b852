// The posterior and the prior over one tile, their scale parameters transformed.
#pragma once

#include "cpu/tile.h"
#include "math/gaussian.h"

namespace vaefast {
namespace VAEFAST_ISA {

// A tile's place in sample k of several, which lie one behind the other.
inline Tile of_sample(const Tile& tile, int64_t k, const Shape& shape) {
  return {tile.row + k * shape.rows, tile.rows, tile.col, tile.cols};
}

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

// `want_std`: whether std is used where it is not made beside the others.
template <class T>
ScaleTile<T> load_scale(const SampleKlArgs& args, const View& view, Clamp clamp, const Tile& tile,
                        bool want_std, ScaleBuffers<T>& b);

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

// Log-variances for which 1 / sigma^2 times any distance that a model has is finite: outliers go a
// way of their own, in which nothing overflows that the result does not.
template <class T>
constexpr T kUsualLogvar = sizeof(T) == 4 ? T(64) : T(512);

// True where every log-variance is below `bound` in size; a NaN is not.
template <class T>
bool all_below(int64_t n, const T* logvar, T bound) {
  int outside = 0;
  for (int64_t i = 0; i < n; ++i) outside |= abs(logvar[i]) < bound ? 0 : 1;
  return outside == 0;
}

VAEFAST_FN bool has_prior(const SampleKlArgs& args) { return args.prior_mu || args.prior_scale; }

}  // namespace VAEFAST_ISA
}  // namespace vaefast
