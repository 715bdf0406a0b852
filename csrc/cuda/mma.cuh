// Products of small matrices on the tensor cores, by the lanes of a warp together.
//
// TF32 has float32's exponent and 11 bits of significand. What an instruction multiplies is exact;
// how it adds is not documented. Measured, V100 to H100 bring the addends of four products and the
// accumulator to the exponent of the largest, cut what lies below 24 bits (the later ones a bit or
// two further down), and cut the sum (Fasi, Higham, Mikaitis and Pranesh 2021, "Numerical behavior
// of NVIDIA tensor cores"; Khattak and Mikaitis 2025, "Accurate models of NVIDIA tensor cores").
// A build that runs the kernels on the CPU does the worst of these.
#pragma once

#include "cuda/emulated.h"
#include "math/bits.h"

#if !defined(__CUDACC__)
#include <cmath>
#endif

namespace vaefast {
namespace VAEFAST_ISA {

// Lane l has A's rows l / 4 and l / 4 + 8, B's column l / 4, and of either the places l % 4 and
// l % 4 + 4 of the sum.
struct Tf32Left {
  // (row, place), (row + 8, place), (row, place + 4), (row + 8, place + 4)
  uint32_t v[4];
};
struct Tf32Right {
  uint32_t v[2];
};
// Of the sums it has rows l / 4 and l / 4 + 8, columns 2 (l % 4) and 2 (l % 4) + 1.
struct Sums16x8 {
  // (row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1)
  float v[4];
};

// The bits of x to the nearest TF32, but for the 13 last, which the tensor cores do not read.
VAEFAST_FN uint32_t nearest_tf32(float x) { return to_bits(x) + 0x1000u; }

VAEFAST_FN float cut_tf32(uint32_t bits) { return as_float(bits & 0xffffe000u); }

#if !defined(__CUDACC__)

// sum + the four products, each cut at 24 bits of the largest, and the sum as well.
inline float cut_sum(float sum, const double* products) {
  double largest = sum < 0 ? -double{sum} : double{sum};
  for (int i = 0; i < 4; ++i) {
    const double size = products[i] < 0 ? -products[i] : products[i];
    largest = size > largest ? size : largest;
  }
  const uint64_t exponent = to_bits(largest) >> 52;
  if (exponent < 128 || exponent >= 2047) {
    for (int i = 0; i < 4; ++i) sum += static_cast<float>(products[i]);
    return sum;
  }
  const double step = as_double((exponent - 23) << 52);
  double total = std::trunc(sum / step);
  for (int i = 0; i < 4; ++i) total += std::trunc(products[i] / step);
  total *= step;
  const float rounded = static_cast<float>(total);
  const bool beyond = rounded < 0 ? rounded < total : rounded > total;
  return beyond ? as_float(to_bits(rounded) - 1) : rounded;
}

#endif

// sums += a b, of 16 x 8 and 8 x 8.
static __device__ __forceinline__ void multiply_add(const Tf32Left& a, const Tf32Right& b,
                                                    Sums16x8& sums) {
#if defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums.v[0]), "+f"(sums.v[1]), "+f"(sums.v[2]), "+f"(sums.v[3])
      : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b.v[0]), "r"(b.v[1]));
#elif !defined(__CUDACC__)
  struct Given {
    Tf32Left a;
    Tf32Right b;
  };
  const Given mine = {a, b};
  Given all[32];
  emulated::gather(&mine, sizeof mine, all);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * (lane % 4) + i % 2;
    for (int half = 0; half < 2; ++half) {
      double products[4];
      for (int k = 0; k < 4; ++k)
        products[k] = double{cut_tf32(all[lane / 4 * 4 + k].a.v[row + 2 * half])} *
                      double{cut_tf32(all[column * 4 + k].b.v[half])};
      sums.v[i] = cut_sum(sums.v[i], products);
    }
  }
#else
  (void)a, (void)b, (void)sums;
#endif
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
