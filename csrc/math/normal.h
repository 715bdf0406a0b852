// Uniforms in (0, 1] and standard normals from Philox words.
#pragma once

#include <cstdint>

#include "special.h"

namespace vaefast {
namespace VAEFAST_ISA {

// (word + 1) 2^-32 from all 32 bits: 24 bits would cap the normals at 5.8.
VAEFAST_FN void uniform(uint32_t word, float& u) {
  u = static_cast<float>(word) * 0x1p-32f + 0x1p-32f;
}

VAEFAST_FN void uniform(uint32_t word, double& u) {
  u = static_cast<double>(word) * 0x1p-32 + 0x1p-32;
}

// sqrt(-2 log u) of such a u. On a GPU float's within 5e-7, relative from 1 on, absolute below: the
// unit's logarithm is off by 2^-22 near 1, where a series in the exact 1 - u takes its place.
VAEFAST_FN double normal_radius(double u) { return sqrt(-2.0 * log_normal(u)); }

VAEFAST_FN float normal_radius(float u) {
#if VAEFAST_DEVICE
  const float f = 1.0f - u;
  const float near = f * horner(f, 2.000000000f, 9.999893308e-01f, 6.673377156e-01f,
                                4.854035974e-01f, 5.257382989e-01f);
  const float far = device::lg2(u) * -1.386294361f;
  return device::root(f < 0.125f ? near : far);
#else
  return sqrt(-2.0f * log_normal(u));
#endif
}

// Box and Muller 1958: two words give two independent normals.
template <class T>
VAEFAST_FN void box_muller(uint32_t first, uint32_t second, T& n0, T& n1) {
  T u, v, sin, cos;
  uniform(first, u);
  uniform(second, v);
  const T radius = normal_radius(u);
  sincos_2pi(v, sin, cos);
  n0 = radius * cos;
  n1 = radius * sin;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
