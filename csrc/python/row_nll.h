// Likelihoods with a class dimension.
#pragma once

#include "python/bind.h"

namespace vaefast {

inline void set_threads(RowNllArgs& args, int threads, int64_t) {
  args.threads = python::useful_threads(args.rows * args.classes * args.inner, threads);
}

namespace python {

// geometry: rows, classes, inner, segments, row_stride, class_stride, target_rows.
// target: pointer, dtype, row_starts, columns (0: not sparse), stored values. over: mask, weight
// (0: absent). settings: form, numbers, reduce, factor, grad_factor, wide.
inline RowNllArgs row_nll_args(const py::tuple& geometry, const py::tuple& params,
                               const py::tuple& target, const py::tuple& over,
                               const py::tuple& settings, uint64_t loss, const py::object& grad) {
  RowNllArgs a;
  a.rows = at<int64_t>(geometry, 0);
  a.classes = at<int64_t>(geometry, 1);
  a.inner = at<int64_t>(geometry, 2);
  a.segments = at<int64_t>(geometry, 3);
  a.row_stride = at<int64_t>(geometry, 4);
  a.class_stride = at<int64_t>(geometry, 5);
  a.target_rows = at<int64_t>(geometry, 6);
  a.params = pointer(params);
  a.dtype = static_cast<DType>(at<int>(params, 1));
  a.target = pointer(target);
  a.target_dtype = static_cast<DType>(at<int>(target, 1));
  a.row_starts = static_cast<const int64_t*>(memory(at<uint64_t>(target, 2)));
  a.columns = static_cast<const int64_t*>(memory(at<uint64_t>(target, 3)));
  a.stored = at<int64_t>(target, 4);
  a.mask = static_cast<const uint8_t*>(memory(at<uint64_t>(over, 0)));
  a.weight = memory(at<uint64_t>(over, 1));
  a.form = static_cast<RowForm>(at<int>(settings, 0));
  const py::tuple numbers = py::reinterpret_borrow<py::tuple>(settings[1]);
  if (numbers.size() > sizeof a.numbers / sizeof a.numbers[0])
    throw py::value_error("too many numbers");
  for (size_t i = 0; i < numbers.size(); ++i) a.numbers[i] = at<double>(numbers, i);
  a.reduce = static_cast<Reduce>(at<int>(settings, 2));
  a.factor = at<double>(settings, 3);
  a.grad_factor = at<double>(settings, 4);
  a.wide = at<bool>(settings, 5);
  a.loss = memory(loss);
  a.grad = output(grad);
  if (a.grad.data != a.params) set_nontemporal(a.grad, a.rows * a.classes * a.inner);
  return a;
}

inline void row_nll_on_cpu(const RowNllArgs& a) {
  if (a.form == RowForm::kLogisticMixture) {
    cpu::logistic_mixture_nll(a);
  } else {
    cpu::softmax_nll(a);
  }
}

inline void row_nll(const py::tuple& geometry, const py::tuple& params, const py::tuple& target,
                    const py::tuple& over, const py::tuple& settings, uint64_t loss,
                    const py::object& grad, const py::object& where) {
  RowNllArgs a = row_nll_args(geometry, params, target, over, settings, loss, grad);
  Kernel<RowNllArgs> kernel = {row_nll_on_cpu, nullptr};
#if defined(VAEFAST_CUDA)
  kernel.on_gpu = cuda::row_nll;
#endif
  run<RowNllArgs>(kernel, a, where);
}

VAEFAST_BIND(row_nll) {
  module.def("row_nll", &row_nll);
  VAEFAST_BIND_WORKSPACE(row_nll, row_nll_args);
}

}  // namespace python
}  // namespace vaefast
