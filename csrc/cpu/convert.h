// Storage types to and from the compute type, a run of elements at a time. Kernels never see a
// storage type: they would multiply with it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

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

VAEFAST_FN void widen_f16(const uint16_t* source, float* target, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(half));
  }
#endif
  for (; i < n; ++i) target[i] = from_f16(source[i]);
}

VAEFAST_FN void narrow_f16(const float* source, uint16_t* target, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), half);
  }
#endif
  for (; i < n; ++i) target[i] = to_f16(source[i]);
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

template <class S, class T>
VAEFAST_FN void widen_as(const void* source, T* target, int64_t n) {
  const S* from = static_cast<const S*>(source);
  for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(from[i]);
}

// n stored elements, one after the other, in the compute type.
template <class T>
static void widen(DType dtype, const void* source, T* target, int64_t n) {
  switch (dtype) {
    case DType::kF64:
      return widen_as<double>(source, target, n);
    case DType::kF32:
      return widen_as<float>(source, target, n);
    case DType::kU8:
    case DType::kBool:
      return widen_as<uint8_t>(source, target, n);
    case DType::kI32:
      return widen_as<int32_t>(source, target, n);
    case DType::kI64:
      return widen_as<int64_t>(source, target, n);
    case DType::kBF16: {
      const uint16_t* from = static_cast<const uint16_t*>(source);
      for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(from_bf16(from[i]));
      return;
    }
    case DType::kF16: {
      const uint16_t* from = static_cast<const uint16_t*>(source);
      if constexpr (sizeof(T) == sizeof(float)) {
        widen_f16(from, target, n);
      } else {
        for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(from_f16(from[i]));
      }
      return;
    }
  }
}

// n computed elements in their storage type.
template <class T>
static void narrow(const T* source, DType dtype, void* target, int64_t n) {
  switch (dtype) {
    case DType::kF64: {
      double* to = static_cast<double*>(target);
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<double>(source[i]);
      return;
    }
    case DType::kBF16: {
      uint16_t* to = static_cast<uint16_t*>(target);
      for (int64_t i = 0; i < n; ++i) to[i] = to_bf16(static_cast<float>(source[i]));
      return;
    }
    case DType::kF16: {
      uint16_t* to = static_cast<uint16_t*>(target);
      if constexpr (sizeof(T) == sizeof(float)) {
        narrow_f16(source, to, n);
      } else {
        for (int64_t i = 0; i < n; ++i) to[i] = to_f16(static_cast<float>(source[i]));
      }
      return;
    }
    default: {
      float* to = static_cast<float*>(target);
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(source[i]);
      return;
    }
  }
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
