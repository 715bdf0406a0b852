// Normal or uniform noise by itself.
#pragma once

#include "python/bind.h"

namespace vaefast {
namespace python {

inline void noise(const py::tuple& grid, const py::object& state, bool normal, uint32_t purpose,
                  const py::object& out, const py::object& where) {
  NoiseArgs a;
  a.shape = shape(grid);
  a.state = noise_state(state);
  a.normal = normal;
  a.purpose = purpose;
  a.out = output(out);
  set_nontemporal(a.out, a.shape.rows * a.shape.cols);
  run<NoiseArgs>(VAEFAST_KERNEL(noise), a, where);
}

VAEFAST_BIND(noise) { module.def("noise", &noise); }

}  // namespace python
}  // namespace vaefast
