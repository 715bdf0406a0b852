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

// Box and Muller 1958: two words give two independent normals.
template <class T>
VAEFAST_FN void box_muller(uint32_t first, uint32_t second, T& n0, T& n1) {
  T u, v, sin, cos;
  uniform(first, u);
  uniform(second, v);
  const T radius = sqrt(T(-2) * log_normal(u));
  sincos_2pi(v, sin, cos);
  n0 = radius * cos;
  n1 = radius * sin;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
