// What the math functions stand on: constants, bit casts, fused multiply-add, Horner's scheme,
// square root.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#if defined(_MSC_VER) && !defined(__clang__)
#include <cmath>
#endif

#include "config.h"

namespace vaefast {
namespace VAEFAST_ISA {

constexpr float kInfF = std::numeric_limits<float>::infinity();
constexpr float kNanF = std::numeric_limits<float>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
template <class T>
constexpr T kLargest = std::numeric_limits<T>::max();
constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;
// log(2 pi)
constexpr double kLog2Pi = 1.83787706640934548356;

VAEFAST_FN uint32_t to_bits(float x) {
  uint32_t b;
  memcpy(&b, &x, sizeof b);
  return b;
}

VAEFAST_FN uint64_t to_bits(double x) {
  uint64_t b;
  memcpy(&b, &x, sizeof b);
  return b;
}

VAEFAST_FN float as_float(uint32_t b) {
  float x;
  memcpy(&x, &b, sizeof x);
  return x;
}

VAEFAST_FN double as_double(uint64_t b) {
  double x;
  memcpy(&x, &b, sizeof x);
  return x;
}

// On a GPU an operand's modifier, which costs nothing.
VAEFAST_FN float abs(float x) {
#if defined(__CUDA_ARCH__)
  return ::fabsf(x);
#else
  return as_float(to_bits(x) & 0x7fffffffu);
#endif
}
VAEFAST_FN double abs(double x) { return as_double(to_bits(x) & 0x7fffffffffffffffull); }

VAEFAST_FN float sqrt(float x) {
#if defined(__CUDA_ARCH__) || (defined(_MSC_VER) && !defined(__clang__))
  return ::sqrtf(x);
#else
  return __builtin_sqrtf(x);
#endif
}

VAEFAST_FN double sqrt(double x) {
#if defined(__CUDA_ARCH__) || (defined(_MSC_VER) && !defined(__clang__))
  return ::sqrt(x);
#else
  return __builtin_sqrt(x);
#endif
}

// a*b + c, in one rounding where the hardware has it.
VAEFAST_FN float madd(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return ::fmaf(a, b, c);
#elif VAEFAST_HAS_FMA || VAEFAST_EMULATED
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

VAEFAST_FN double madd(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return ::fma(a, b, c);
#elif VAEFAST_HAS_FMA
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// c0 + c1 x + c2 x^2 + ...
template <typename T>
VAEFAST_FN T horner(T, T c) {
  return c;
}

template <typename T, typename... Rest>
VAEFAST_FN T horner(T x, T c0, Rest... rest) {
  return madd(horner(x, rest...), x, c0);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
