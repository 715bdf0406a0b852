// Storage types to and from the compute type, compiled once for all kernels.
#include "cpu/convert.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

void widen_f16(const uint16_t* source, float* target, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(half));
  }
#endif
  for (; i < n; ++i) target[i] = from_f16(source[i]);
}

void narrow_f16(const float* source, uint16_t* target, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), half);
  }
#endif
  for (; i < n; ++i) target[i] = to_f16(source[i]);
}

template <class S, class T>
void widen_as(const void* source, T* target, int64_t n) {
  const S* from = static_cast<const S*>(source);
  for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(from[i]);
}

}  // namespace

template <class T>
void widen(DType dtype, const void* source, T* target, int64_t n) {
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

template <class T>
void narrow(const T* source, DType dtype, void* target, int64_t n) {
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

template void widen(DType, const void*, float*, int64_t);
template void widen(DType, const void*, double*, int64_t);
template void narrow(const float*, DType, void*, int64_t);
template void narrow(const double*, DType, void*, int64_t);

}  // namespace VAEFAST_ISA
}  // namespace vaefast
