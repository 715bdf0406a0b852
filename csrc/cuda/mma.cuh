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

// sums += a b, of 16 x 8 and 8 x 8.
static __device__ __forceinline__ void multiply_add(const Tf32Left& a, const Tf32Right& b,
                                                    Sums16x8& sums) {
#if defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums.v[0]), "+f"(sums.v[1]), "+f"(sums.v[2]), "+f"(sums.v[3])
      : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b.v[0]), "r"(b.v[1]));
#elif !defined(__CUDACC__)
  emulated::multiply_add(a.v, b.v, sums.v);
#else
  (void)a, (void)b, (void)sums;
#endif
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
