// Elementary functions whose results stay away from denormal numbers.
#pragma once

#include "special.h"

namespace vaefast {
namespace VAEFAST_ISA {

template <class T>
VAEFAST_FN T within(T x, T bound) {
  const T low = x < -bound ? -bound : x;
  return low > bound ? bound : low;
}

template <class T>
VAEFAST_FN T finite(T x) {
  return within(x, kLargest<T>);
}

// e^-a, a >= 0, not below e^-far (far <= 87, in double 708): a denormal result, or a product of it
// that is one, costs the vector that holds it some 150 cycles, and beside 1 either is nothing.
template <class T>
VAEFAST_FN T exp_minus(T a, T far) {
  return exp_normal(-(a > far ? far : a));
}

// e^x for x <= 0, <= 1 ulp, and 0 below e^-87.3 (double: e^-708): no result is denormal. A row's
// sum of them is multiplied by its counts, so that a GPU too has it to the last digit.
template <class T>
VAEFAST_FN T exp_or_zero(T x) {
  const T far = sizeof(T) == 4 ? T(-87.3) : T(-708);
  const T value = exp_precise(x < far ? far : x);
  return x < far ? T(0) : value;
}

// 2^x for x < 127, <= 2.5 ulp, 0 below 2^-100: a density that small adds nothing to a sum, and its
// products would be denormal, which made a kernel three times slower. Half of what exp costs, as
// there is no change of base. On a GPU one instruction, 2 ulp, 0 below 2^-126.
VAEFAST_FN float exp2(float x) {
#if VAEFAST_DEVICE
  return device::ex2(x);
#else
  const float t = x + 12582912.0f;
  const float f = x - (t - 12582912.0f);
  const float p = horner(f, 1.0f, 6.931470037e-01f, 2.402224243e-01f, 5.550733581e-02f,
                         9.671512991e-03f, 1.326472731e-03f);
  const float y = as_float(to_bits(p) + (to_bits(t) << 23));
  return x < -100.0f ? 0.0f : y;
#endif
}

// Within |x| < 127 <= 96 ulp: the product's rounding, |x| times.
VAEFAST_FN double exp2(double x) { return exp(x * kLn2); }

// The base-2 logarithm of a sum, to divide its terms by: 2^-log2 is 2^-shift times `rest`. Of a
// point far from every component the logarithm does not fit T to the last unit, and its rounding
// would be a factor on all of the point's gradient. An infinite logarithm is left as it is.
template <class T>
struct Divisor {
  T shift, rest;

  VAEFAST_MEMBER explicit Divisor(double log2) : shift(static_cast<T>(log2)), rest(1) {
    const double lost = static_cast<double>(shift) - log2;
    if (lost > -64 && lost < 64) rest = static_cast<T>(exp2(lost));
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
