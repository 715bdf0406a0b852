// The noise of V consecutive elements: a thread makes whole Philox counters, four values each.
#pragma once

#include "cuda/grid.cuh"
#include "math/normal.h"
#include "math/philox.h"

namespace vaefast {
namespace VAEFAST_ISA {

// The values of V/4 whole counters.
template <bool kNormal, class T, int V>
VAEFAST_FN void whole_values(uint64_t seed, uint64_t block, uint32_t sample, uint32_t purpose,
                             T* out) {
#if defined(__CUDA_ARCH__)
  // Keeps the 20 round keys from being made before the loop, where they fill 20 registers.
  asm volatile("" : "+l"(seed));
#endif
  uint32_t words[V];
  philox<V / 4>(seed, block, sample, purpose, words);
#pragma unroll
  for (int l = 0; l < V; l += 2) {
    if constexpr (kNormal) {
      box_muller(words[l], words[l + 1], out[l], out[l + 1]);
    } else {
      uniform(words[l], out[l]);
      uniform(words[l + 1], out[l + 1]);
    }
  }
}

// Elements [first, first + V) of a seed's noise. Where they are not those of whole counters, one
// counter at a time, and selects between registers: an index known at run time would take local
// memory. kUsual: most are those of whole counters, and have a path of their own, for 6 registers
// more.
template <bool kNormal, class T, int V, bool kUsual>
VAEFAST_FN void noise_values(uint64_t seed, uint64_t first, uint32_t sample, uint32_t purpose,
                             T* out) {
  const uint64_t block = first >> 2;
  const int shift = static_cast<int>(first & 3u);
  if (kUsual && !rarely(shift != 0))
    return whole_values<kNormal, T, V>(seed, block, sample, purpose, out);
  const int blocks = V / 4 + (kUsual || shift != 0);
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = T(0);
#pragma unroll 1
  for (int b = 0; b < blocks; ++b) {
    T v[4];
    whole_values<kNormal, T, 4>(seed, block + static_cast<uint64_t>(b), sample, purpose, v);
    // Left by `shift`, round about.
    if (shift & 1) {
      const T v0 = v[0];
      v[0] = v[1];
      v[1] = v[2];
      v[2] = v[3];
      v[3] = v0;
    }
    if (shift & 2) {
      const T v0 = v[0], v1 = v[1];
      v[0] = v[2];
      v[1] = v[3];
      v[2] = v0;
      v[3] = v1;
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const bool from_here = b == j / 4 + (j % 4 + shift > 3);
      out[j] = from_here ? v[j % 4] : out[j];
    }
  }
}

// Where a stretch of a row lies in its seed's noise.
struct NoiseRow {
  uint64_t seed, first;
};

template <bool kPerSample>
VAEFAST_FN NoiseRow enter(const NoiseState& state, const Shape& shape, int64_t row, int64_t col) {
  const int64_t* words = state.words;
  int64_t place = row;
  if (kPerSample && state.per_sample) {
    const int64_t sample = shape.segments == 1 ? row : quotient(row, shape.segments);
    words += 2 * sample;
    place = row - sample * shape.segments;
  }
  return {static_cast<uint64_t>(words[0]),
          static_cast<uint64_t>((state.fresh ? 0 : words[1]) + state.offset + place * shape.cols +
                                col)};
}

// Writes the offset of a fresh state, which no thread of the launch reads.
VAEFAST_FN void settle(const NoiseState& state, int64_t unit, int lane) {
  if (state.fresh && unit == 0 && lane == 0) const_cast<int64_t*>(state.words)[1] = 0;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
