// Philox in SIMD registers and the noise of a tile.
#pragma once

#include "core/args.h"
#include "cpu/tile.h"
#include "math/normal.h"
#include "math/philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace vaefast {
namespace VAEFAST_ISA {

// A counter in each 64-bit lane: the multiplication of the low halves is one instruction, and what
// it leaves in the high halves need not be cleared: half of what the scalar loop takes as GCC 12
// vectorises it. The multiplier is one of two or three ports, and shifts share it, so halves are
// brought down by a shuffle; with 32 registers there is room for four chains (0.43 ns a word for
// 0.55).
#if defined(__AVX512F__)
#define VAEFAST_SIMD_PHILOX 1
using Words = __m512i;
constexpr int kLanes = 8, kChains = 4;
VAEFAST_FN Words splat(uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
VAEFAST_FN Words count() { return _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0); }
VAEFAST_FN Words plus(Words a, Words b) { return _mm512_add_epi64(a, b); }
VAEFAST_FN Words product(Words a, Words b) { return _mm512_mul_epu32(a, b); }
VAEFAST_FN Words high(Words a) { return _mm512_shuffle_epi32(a, _MM_PERM_DDBB); }
VAEFAST_FN Words exclusive(Words a, Words b, Words c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
VAEFAST_FN Words join(Words low, Words top) {
  return _mm512_mask_blend_epi32(0xAAAA, low, _mm512_slli_epi64(top, 32));
}
VAEFAST_FN void store(uint32_t* to, Words a) { _mm512_storeu_si512(to, a); }
#elif defined(__AVX2__)
#define VAEFAST_SIMD_PHILOX 1
using Words = __m256i;
constexpr int kLanes = 4, kChains = 2;
VAEFAST_FN Words splat(uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
VAEFAST_FN Words count() { return _mm256_set_epi64x(3, 2, 1, 0); }
VAEFAST_FN Words plus(Words a, Words b) { return _mm256_add_epi64(a, b); }
VAEFAST_FN Words product(Words a, Words b) { return _mm256_mul_epu32(a, b); }
VAEFAST_FN Words high(Words a) { return _mm256_shuffle_epi32(a, 0xF5); }
VAEFAST_FN Words exclusive(Words a, Words b, Words c) {
  return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}
VAEFAST_FN Words join(Words low, Words top) {
  return _mm256_blend_epi32(low, _mm256_slli_epi64(top, 32), 0xAA);
}
VAEFAST_FN void store(uint32_t* to, Words a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a);
}
#elif defined(__SSE2__)
#define VAEFAST_SIMD_PHILOX 1
using Words = __m128i;
constexpr int kLanes = 2, kChains = 2;
VAEFAST_FN Words splat(uint64_t x) { return _mm_set1_epi64x(static_cast<long long>(x)); }
VAEFAST_FN Words count() { return _mm_set_epi64x(1, 0); }
VAEFAST_FN Words plus(Words a, Words b) { return _mm_add_epi64(a, b); }
VAEFAST_FN Words product(Words a, Words b) { return _mm_mul_epu32(a, b); }
VAEFAST_FN Words high(Words a) { return _mm_srli_epi64(a, 32); }
VAEFAST_FN Words exclusive(Words a, Words b, Words c) {
  return _mm_xor_si128(_mm_xor_si128(a, b), c);
}
VAEFAST_FN Words join(Words low, Words top) {
  return _mm_or_si128(_mm_and_si128(low, splat(0xffffffffu)), _mm_slli_epi64(top, 32));
}
VAEFAST_FN void store(uint32_t* to, Words a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), a);
}
#endif

#if defined(VAEFAST_SIMD_PHILOX)
// kChains vectors of counters from `at` on, side by side: one's multiplications hide another's
// latency.
template <int kChains>
VAEFAST_FN void philox_chains(uint64_t seed, uint64_t at, uint32_t sample, uint32_t purpose,
                              uint32_t* even, uint32_t* odd) {
  const Words m0 = splat(kPhiloxMul0), m1 = splat(kPhiloxMul1);
  Words c0[kChains], c1[kChains], c2[kChains], c3[kChains];
  for (int j = 0; j < kChains; ++j) {
    c0[j] = plus(splat(at + static_cast<uint64_t>(j * kLanes)), count());
    c1[j] = high(c0[j]);
    c2[j] = splat(sample);
    c3[j] = splat(purpose);
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const Words key0 = splat(k0), key1 = splat(k1);
    for (int j = 0; j < kChains; ++j) {
      const Words first = product(c0[j], m0), second = product(c2[j], m1);
      c0[j] = exclusive(high(second), c1[j], key0);
      c2[j] = exclusive(high(first), c3[j], key1);
      c1[j] = second;
      c3[j] = first;
    }
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  for (int j = 0; j < kChains; ++j) {
    store(even + 2 * j * kLanes, join(c0[j], c2[j]));
    store(odd + 2 * j * kLanes, join(c1[j], c3[j]));
  }
}
#endif

// Words 0 and 2 of each counter go to `even`, words 1 and 3 to `odd`: the pairs that Box-Muller
// takes. `blocks` is a multiple of 16.
static void philox_words(uint64_t seed, uint64_t block, uint32_t sample, uint32_t purpose,
                         int64_t blocks, uint32_t* even, uint32_t* odd) {
  int64_t i = 0;
#if defined(VAEFAST_SIMD_PHILOX)
  for (; i + kChains * kLanes <= blocks; i += kChains * kLanes)
    philox_chains<kChains>(seed, block + static_cast<uint64_t>(i), sample, purpose, even + 2 * i,
                           odd + 2 * i);
  for (; i < blocks; i += 2 * kLanes)
    philox_chains<2>(seed, block + static_cast<uint64_t>(i), sample, purpose, even + 2 * i,
                     odd + 2 * i);
#else
  for (; i < blocks; ++i) {
    uint32_t words[4];
    philox(seed, block + static_cast<uint64_t>(i), sample, purpose, words);
    even[2 * i] = words[0];
    odd[2 * i] = words[1];
    even[2 * i + 1] = words[2];
    odd[2 * i + 1] = words[3];
  }
#endif
}

// A tile's noise, with room for the rounding up to whole groups of 16 counters at both ends.
template <class T>
struct NoiseBuffer {
  static constexpr int64_t kRoom = kTile<T> + 128;
  uint32_t even[kRoom / 2], odd[kRoom / 2];
  T values[kRoom];
  T row[kTile<T>];
};

// Elements [first, first + n) of a seed's noise; they begin at the pointer that is returned.
template <class T>
static const T* noise_at(uint64_t seed, uint64_t first, int64_t n, uint32_t sample,
                         uint32_t purpose, bool normal, NoiseBuffer<T>& buffer) {
  const int64_t shift = static_cast<int64_t>(first & 3u);
  const int64_t blocks = ((n + shift + 3) / 4 + 15) / 16 * 16;
  philox_words(seed, first >> 2, sample, purpose, blocks, buffer.even, buffer.odd);
  const uint32_t* even = buffer.even;
  const uint32_t* odd = buffer.odd;
  T* values = buffer.values;
  const int64_t pairs = 2 * blocks;
  if (normal) {
    for (int64_t i = 0; i < pairs; ++i)
      box_muller(even[i], odd[i], values[2 * i], values[2 * i + 1]);
  } else {
    for (int64_t i = 0; i < pairs; ++i) {
      uniform(even[i], values[2 * i]);
      uniform(odd[i], values[2 * i + 1]);
    }
  }
  return values + shift;
}

// Noise over a tile of a [rows, cols] tensor: one state for all of it, or one per sample.
template <class T>
static const T* tile_noise(const NoiseState& state, const Shape& shape, const Tile& tile,
                           uint32_t sample, uint32_t purpose, bool normal, NoiseBuffer<T>& buffer) {
  if (!state.per_sample) {
    const int64_t first = state.words[1] + state.offset + tile.start(shape);
    return noise_at(static_cast<uint64_t>(state.words[0]), static_cast<uint64_t>(first),
                    tile.size(), sample, purpose, normal, buffer);
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.row + r;
    const int64_t* words = state.words + 2 * (row / shape.segments);
    const int64_t first = words[1] + state.offset + row % shape.segments * shape.cols + tile.col;
    const T* values = noise_at(static_cast<uint64_t>(words[0]), static_cast<uint64_t>(first),
                               tile.cols, sample, purpose, normal, buffer);
    memcpy(buffer.row + r * tile.cols, values, static_cast<size_t>(tile.cols) * sizeof(T));
  }
  return buffer.row;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
