// The noise of V consecutive elements: a thread makes whole Philox counters, four values each.
#pragma once

#include "cuda/grid.cuh"
#include "math/normal.h"
#include "math/philox.h"

namespace vaefast {
namespace VAEFAST_ISA {

template <bool kNormal, class T>
VAEFAST_FN void four_values(uint64_t seed, uint64_t block, uint32_t sample, uint32_t purpose,
                            T* out) {
#if defined(__CUDA_ARCH__)
  // Keeps the 20 round keys from being made before the loop, where they fill 20 registers.
  asm volatile("" : "+l"(seed));
#endif
  uint32_t words[4];
  philox(seed, block, sample, purpose, words);
  if constexpr (kNormal) {
    box_muller(words[0], words[1], out[0], out[1]);
    box_muller(words[2], words[3], out[2], out[3]);
  } else {
#pragma unroll
    for (int l = 0; l < 4; ++l) uniform(words[l], out[l]);
  }
}

// Elements [first, first + V) of a stream. One counter at a time, and selects between registers:
// the counters side by side would take 40 more registers, an index known at run time local memory.
template <bool kNormal, class T, int V>
VAEFAST_FN void stream_values(uint64_t seed, uint64_t first, uint32_t sample, uint32_t purpose,
                              T* out) {
  const uint64_t block = first >> 2;
  const int shift = static_cast<int>(first & 3u);
  const int blocks = V / 4 + (shift != 0);
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = T(0);
#pragma unroll 1
  for (int b = 0; b < blocks; ++b) {
    T v[4];
    four_values<kNormal>(seed, block + static_cast<uint64_t>(b), sample, purpose, v);
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

// Where a stretch of a row lies in its stream.
struct StreamRow {
  uint64_t seed, first;
};

template <bool kPerSample>
VAEFAST_FN StreamRow enter(const Stream& stream, const Shape& shape, int64_t row, int64_t col) {
  const int64_t* state = stream.state;
  int64_t place = row;
  if (kPerSample && stream.per_sample) {
    const int64_t sample = shape.segments == 1 ? row : quotient(row, shape.segments);
    state += 2 * sample;
    place = row - sample * shape.segments;
  }
  return {static_cast<uint64_t>(state[0]),
          static_cast<uint64_t>((stream.fresh ? 0 : state[1]) + stream.offset + place * shape.cols +
                                col)};
}

// Writes the offset of a fresh state, which no thread of the launch reads.
VAEFAST_FN void settle(const Stream& stream, int64_t unit, int lane) {
  if (stream.fresh && unit == 0 && lane == 0) const_cast<int64_t*>(stream.state)[1] = 0;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
