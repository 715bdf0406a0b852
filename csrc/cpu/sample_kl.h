// What sampling with its KL, its backward pass and the KL estimated at the samples share.
#pragma once

#include "cpu/noise.h"
#include "cpu/posterior.h"

namespace vaefast {
namespace VAEFAST_ISA {

template <class T>
const T* load_noise(const SampleKlArgs& args, const Tile& tile, int64_t k, NoiseBuffer<T>& buffer) {
  if (args.noise) return load(args.noise, of_sample(tile, k, args.shape), buffer.row);
  return tile_noise(args.state, args.shape, tile, static_cast<uint32_t>(k),
                    static_cast<uint32_t>(Purpose::kPosterior), true, buffer);
}

// dz/dscale = temperature sigma eps / 2 dlogvar/dscale.
template <class T>
void scale_derivative(const SampleKlArgs& args, const ScaleTile<T>& scale, int64_t n, const T* eps,
                      T* __restrict out) {
  const T half = T(0.5 * args.temperature);
  const T* std = scale.std;
  if (const T* slope = scale.slope) {
    for (int64_t i = 0; i < n; ++i) out[i] = half * std[i] * eps[i] * slope[i];
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = half * std[i] * eps[i];
  }
}

// The usual call: one sample of a posterior given by its log-variance, and the KL to N(0, I).
VAEFAST_FN bool usual(const SampleKlArgs& args) {
  return args.param == Param::kLogvar && args.clamp == Clamp::kNone && !has_prior(args) &&
         args.samples == 1 && args.reduce != Reduce::kNone;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
