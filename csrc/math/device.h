// The GPU's special-function unit: approximations of one instruction each, for float32 on a device.
//
// Errors as NVIDIA's PTX ISA states them (chapter "Floating point instructions"). A build that runs
// the kernels as loops on the CPU (VAEFAST_EMULATE) is off by all of that error, up or down as a
// hash of the argument's bits says: what passes there holds with the hardware's worst.
// All of them take subnormal arguments for 0 and give 0 for subnormal results.
#pragma once

#include "bits.h"

#if defined(__CUDA_ARCH__) || defined(VAEFAST_EMULATE)
#define VAEFAST_DEVICE 1
#else
#define VAEFAST_DEVICE 0
#endif

#if VAEFAST_DEVICE
#if !defined(__CUDA_ARCH__)
#include <cmath>
#endif

namespace vaefast {
namespace VAEFAST_ISA {
namespace device {

#if defined(__CUDA_ARCH__)

#define VAEFAST_UNIT(name, instruction)             \
  VAEFAST_FN float name(float x) {                  \
    float y;                                        \
    asm(instruction " %0, %1;" : "=f"(y) : "f"(x)); \
    return y;                                       \
  }
VAEFAST_UNIT(ex2, "ex2.approx.ftz.f32")
VAEFAST_UNIT(lg2, "lg2.approx.ftz.f32")
VAEFAST_UNIT(rcp, "rcp.approx.ftz.f32")
VAEFAST_UNIT(rsq, "rsqrt.approx.ftz.f32")
VAEFAST_UNIT(root, "sqrt.approx.ftz.f32")
#undef VAEFAST_UNIT

#else

VAEFAST_FN float flushed(float x) {
  return abs(x) < std::numeric_limits<float>::min() ? x * 0.0f : x;
}

// Up or down, as the bits of x fall.
VAEFAST_FN double either(float x) {
  uint32_t h = to_bits(x) * 0x9E3779B1u;
  h ^= h >> 15;
  return (h * 0x85EBCA77u) >> 31 ? 1.0 : -1.0;
}

// `exact` and an error of `relative` times it and `absolute`.
VAEFAST_FN float off(float x, double exact, double relative, double absolute = 0) {
  if (!(exact < kInf && exact > -kInf)) return static_cast<float>(exact);
  const double error = relative * (exact < 0 ? -exact : exact) + absolute;
  return flushed(static_cast<float>(exact + either(x) * error));
}

// A unit in the last place of a float near y, over y.
VAEFAST_FN double ulp_of(double y) {
  int exponent;
  const double mantissa = std::frexp(y, &exponent);
  return 0x1p-24 / (mantissa < 0 ? -mantissa : mantissa);
}

// 2^x, 2 ulp.
VAEFAST_FN float ex2(float x) {
  const double exact = std::exp2(static_cast<double>(flushed(x)));
  return off(x, exact, exact > 0 && exact < kInf ? 2 * ulp_of(exact) : 0);
}

// log2 x: 2^-22, between 1/2 and 2 absolute, elsewhere relative.
VAEFAST_FN float lg2(float x) {
  const double exact = std::log2(static_cast<double>(flushed(x)));
  const bool near = x > 0.5f && x < 2.0f;
  return off(x, exact, near ? 0 : 0x1p-22, near ? 0x1p-22 : 0);
}

// 1 / x, 1 ulp.
VAEFAST_FN float rcp(float x) {
  const double exact = 1 / static_cast<double>(flushed(x));
  return off(x, exact, exact < kInf && exact > -kInf && exact != 0 ? ulp_of(exact) : 0);
}

// 1 / sqrt(x), 2^-22.9 relative.
VAEFAST_FN float rsq(float x) {
  return off(x, 1 / std::sqrt(static_cast<double>(flushed(x))), 0x1.12p-23);
}

// sqrt(x), 2^-23 relative.
VAEFAST_FN float root(float x) {
  return off(x, std::sqrt(static_cast<double>(flushed(x))), 0x1p-23);
}

#endif

// ---- made of these, for float32

// e^x, -87.3 <= x <= 88.3, <= 3 ulp near 0, 5 at the ends. What x log2(e) loses in the rounding,
// x - t ln 2, is exact but for the last bits of ln 2, and comes back as a factor 1 + r.
VAEFAST_FN float exp(float x) {
  const float t = x * 1.44269504f;
  const float r = madd(t, -0.693147182f, x);
  const float y = ex2(t);
  return madd(y, r, y);
}

}  // namespace device
}  // namespace VAEFAST_ISA
}  // namespace vaefast

#endif

namespace vaefast {
namespace VAEFAST_ISA {

// A branch that usual inputs do not take: the counts of tests/sass.py leave it out. What it gives
// is selected by each element's own condition, as its neighbours must not change its bits.
VAEFAST_FN bool rarely(bool asked) {
#if defined(_MSC_VER) && !defined(__clang__)
  return asked;
#else
  return __builtin_expect(asked, false);
#endif
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
