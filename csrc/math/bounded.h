// Elementary functions whose results stay away from denormal numbers.
#pragma once

#include "special.h"

namespace vaefast {
namespace VAEFAST_ISA {

// e^-a, a >= 0, not below e^-far (far <= 87, in double 708): a denormal result, or a product of it
// that is one, costs the vector that holds it some 150 cycles, and beside 1 either is nothing.
template <class T>
VAEFAST_FN T exp_minus(T a, T far) {
  return exp_normal(-(a > far ? far : a));
}

// e^x for x <= 0, and 0 below e^-87.3 (double: e^-708): no result is denormal.
template <class T>
VAEFAST_FN T exp_or_zero(T x) {
  const T far = sizeof(T) == 4 ? T(-87.3) : T(-708);
  const T value = exp_nonpositive(x);
  return x < far ? T(0) : value;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
