// The GPU's special-function unit: approximations of one instruction each, for float32 on a device.
//
// Errors as NVIDIA's PTX ISA states them (chapter "Floating point instructions"). A build that runs
// the kernels as loops on the CPU (VAEFAST_EMULATED) is off by all of that error, up or down as a
// hash of the argument's bits says: what passes there holds with the hardware's worst.
// All of them take subnormal arguments for 0 and give 0 for subnormal results.
#pragma once

#include "bits.h"

// With nvcc's pass for the host too, which compiles the kernels' bodies and never runs them.
#if defined(__CUDACC__) || VAEFAST_EMULATED
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

// 2^x, 2 ulp, and 1 at 0.
VAEFAST_FN float ex2(float x) {
  x = flushed(x);
  const double exact = std::exp2(static_cast<double>(x));
  return off(x, exact, x != 0 && exact > 0 && exact < kInf ? 2 * ulp_of(exact) : 0);
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

// e^x, -87.3 <= x <= 88.3, <= 3.5 ulp within 10 of 0, 8 at the ends. What x log2(e) loses in the
// rounding, x - t ln 2, is exact but for the last bits of ln 2, and comes back as a factor 1 + r.
VAEFAST_FN float exp(float x) {
  const float t = x * 1.44269504f;
  const float r = madd(t, -0.693147182f, x);
  const float y = ex2(t);
  return madd(y, r, y);
}

constexpr float kLn2F = 0.693147182f;

// log x for normal x > 0, within 2e-7 absolute near 1 and 3e-7 relative: what the unit's logarithm
// is off by is not found.
VAEFAST_FN float log_near(float x) { return kLn2F * lg2(x); }

// log x for normal positive x, within 3e-7 absolute and an ulp: the unit's logarithm y, and
// x 2^-y - 1, by which it is off.
VAEFAST_FN float log(float x) {
  const float y = lg2(x);
  const float rest = madd(x, ex2(-y), -1.0f);
  return madd(y, kLn2F, rest);
}

// log(1 + x), 0 <= x < 1e37, <= 8.5 ulp; NaN stays. Up to 1/2 a polynomial, from there on the unit.
VAEFAST_FN float log1p(float x) {
  const float q = horner(x, -4.999958873e-01f, 3.331668377e-01f, -2.477197796e-01f,
                         1.851770431e-01f, -1.147789806e-01f, 3.934216872e-02f);
  const float near = madd(x * x, q, x);
  const float far = log_near(1.0f + x);
  return x < 0.5f ? near : far;
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
