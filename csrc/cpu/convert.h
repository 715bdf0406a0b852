// Storage types to and from the compute type, a run of elements at a time. Kernels never see a
// storage type: they would multiply with it.
#pragma once

#include <cstdint>

#include "core/args.h"
#include "math/special.h"

namespace vaefast {
namespace VAEFAST_ISA {

VAEFAST_FN float from_bf16(uint16_t b) { return as_float(static_cast<uint32_t>(b) << 16); }

// Round to nearest even; a NaN stays one.
VAEFAST_FN uint16_t to_bf16(float x) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);
}

VAEFAST_FN float from_f16(uint16_t h) {
  // Shifted into place, the exponent is short by 112: a multiplication by 2^112 mends it, and
  // turns subnormals into normals on the way.
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  const float scaled = as_float(magnitude) * 0x1p112f;
  const uint32_t bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : to_bits(scaled);
  return as_float(bits | sign);
}

VAEFAST_FN uint16_t to_f16(float x) {
  const uint32_t bits = to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 a float's own rounding, at the weight of half's last place, does the work.
  const uint32_t small = to_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? small : normal;
  const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  // 65520 and above round to infinity.
  return static_cast<uint16_t>((magnitude >= 0x477ff000u ? large : finite) | sign);
}

VAEFAST_FN int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    default:
      return 1;
  }
}

VAEFAST_FN bool same_type(DType dtype, const float*) { return dtype == DType::kF32; }
VAEFAST_FN bool same_type(DType dtype, const double*) { return dtype == DType::kF64; }

// n stored elements, one after the other, in the compute type: float or double.
template <class T>
void widen(DType dtype, const void* source, T* target, int64_t n);

// n computed elements in their storage type.
template <class T>
void narrow(const T* source, DType dtype, void* target, int64_t n);

}  // namespace VAEFAST_ISA
}  // namespace vaefast
