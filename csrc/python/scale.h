// A gradient times its upstream gradient, in place.
#pragma once

#include "python/bind.h"

namespace vaefast {
namespace python {

inline void scale(const py::tuple& grid, const py::object& grad, const py::object& upstream,
                  const py::object& where) {
  ScaleArgs a;
  a.shape = shape(grid);
  a.grad = output(grad);
  a.upstream = view(upstream);
  run<ScaleArgs>(VAEFAST_KERNEL(scale), a, where);
}

VAEFAST_BIND(scale) { module.def("scale", &scale); }

}  // namespace python
}  // namespace vaefast
