// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), one counter at
// a time. cpu/noise.h computes the same in SIMD registers.
#pragma once

#include <cstdint>

#include "config.h"

namespace vaefast {
namespace VAEFAST_ISA {

constexpr uint32_t kPhiloxMul0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMul1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// a b in two words.
VAEFAST_FN void multiply(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
#if defined(__CUDA_ARCH__)
  // Of a 64-bit product's shift the compiler makes an addition of 0 as well.
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  asm("mov.b64 {%0, %1}, %2;" : "=r"(low), "=r"(high) : "l"(product));
#else
  const uint64_t product = static_cast<uint64_t>(a) * b;
  high = static_cast<uint32_t>(product >> 32);
  low = static_cast<uint32_t>(product);
#endif
}

// Four words for counter (block, sample, purpose) under the key `seed`. Element 4 block + l of a
// stream is word l. kBlocks consecutive counters share the round keys.
template <int kBlocks = 1>
VAEFAST_FN void philox(uint64_t seed, uint64_t block, uint32_t sample, uint32_t purpose,
                       uint32_t* out) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int b = 0; b < kBlocks; ++b) {
    const uint64_t at = block + static_cast<uint64_t>(b);
    out[4 * b] = static_cast<uint32_t>(at);
    out[4 * b + 1] = static_cast<uint32_t>(at >> 32);
    out[4 * b + 2] = sample;
    out[4 * b + 3] = purpose;
  }
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int b = 0; b < kBlocks; ++b) {
      uint32_t* const c = out + 4 * b;
      uint32_t high0, low0, high1, low1;
      multiply(c[0], kPhiloxMul0, high0, low0);
      multiply(c[2], kPhiloxMul1, high1, low1);
      c[0] = high1 ^ c[1] ^ k0;
      c[1] = low1;
      c[2] = high0 ^ c[3] ^ k1;
      c[3] = low0;
    }
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
