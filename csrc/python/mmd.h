// The maximum mean discrepancy.
#pragma once

#include "python/bind.h"

namespace vaefast {

inline void set_threads(MmdArgs& args, int threads, int64_t) {
  const int64_t points = args.x_points + args.y_points;
  args.threads = python::useful_pair_threads(points * points / 2, args.dims, threads);
}

namespace python {

// sizes: x's points, y's points, dims; inputs: x, y; factors: xx, yy, xy, constant;
// results: value, grad_x, grad_y. Addresses, 0 for none.
inline MmdArgs mmd_args(const py::tuple& sizes, const py::tuple& inputs, bool rbf,
                        const py::tuple& scales, const py::tuple& factors, const py::tuple& results,
                        bool wide) {
  MmdArgs a;
  a.x_points = at<int64_t>(sizes, 0);
  a.y_points = at<int64_t>(sizes, 1);
  a.dims = at<int64_t>(sizes, 2);
  a.x = address(inputs, 0);
  a.y = address(inputs, 1);
  a.rbf = rbf;
  if (scales.size() > kMaxScales) throw py::value_error("too many scales");
  a.scales = static_cast<int>(scales.size());
  for (size_t i = 0; i < scales.size(); ++i) a.scale[i] = at<double>(scales, i);
  a.factor_xx = at<double>(factors, 0);
  a.factor_yy = at<double>(factors, 1);
  a.factor_xy = at<double>(factors, 2);
  a.constant = at<double>(factors, 3);
  a.value = address(results, 0);
  a.grad_x = address(results, 1);
  a.grad_y = address(results, 2);
  a.wide = wide;
  return a;
}

inline void mmd(const py::tuple& sizes, const py::tuple& inputs, bool rbf, const py::tuple& scales,
                const py::tuple& factors, const py::tuple& results, bool wide,
                const py::object& where) {
  MmdArgs a = mmd_args(sizes, inputs, rbf, scales, factors, results, wide);
  run<MmdArgs>(VAEFAST_KERNEL(mmd), a, where);
}

VAEFAST_BIND(mmd) {
  module.def("mmd", &mmd);
  VAEFAST_BIND_WORKSPACE(mmd, mmd_args);
}

}  // namespace python
}  // namespace vaefast
