// The elementwise likelihoods.
#pragma once

#include <algorithm>

#include "python/prepared.h"

namespace vaefast {
namespace python {

// settings: form, numbers, scalar, target_rows, reduce, factor, grad_factor, wide.
inline NllArgs nll_args(const py::tuple& grid, const py::tuple& params, const py::object& target,
                        const py::tuple& settings) {
  NllArgs a;
  a.shape = shape(grid);
  if (params.size() > kMaxParams) throw py::value_error("too many parameters");
  for (size_t j = 0; j < params.size(); ++j) a.params[j] = view(params[j]);
  a.target = view(target);
  a.form = at<int>(settings, 0);
  const py::tuple numbers = py::reinterpret_borrow<py::tuple>(settings[1]);
  if (numbers.size() > sizeof a.numbers / sizeof a.numbers[0])
    throw py::value_error("too many numbers");
  for (size_t i = 0; i < numbers.size(); ++i) a.numbers[i] = at<double>(numbers, i);
  a.scalar = at<int>(settings, 2);
  a.target_rows = at<int64_t>(settings, 3);
  a.reduce = static_cast<Reduce>(at<int>(settings, 4));
  a.factor = at<double>(settings, 5);
  a.grad_factor = at<double>(settings, 6);
  a.wide = at<bool>(settings, 7);
  return a;
}

class PreparedNll {
 public:
  // grads: the dtype of each parameter's gradient.
  PreparedNll(const py::tuple& grid, const py::tuple& params, const py::object& target,
              const py::object& mask, const py::object& weight, int64_t offset,
              const py::tuple& settings, const py::tuple& grads)
      : args_(nll_args(grid, params, target, settings)) {
    NllArgs& a = args_;
    a.mask = view(mask);
    a.weight = view(weight);
    a.state.offset = offset;
    const int64_t elements = a.shape.rows * a.shape.cols;
    for (size_t j = 0; j < grads.size() && j < kMaxParams; ++j) {
      a.grads[j].dtype = static_cast<DType>(at<int>(grads, j));
      a.grads[j].nontemporal = past_caches(elements * width(a.grads[j].dtype));
    }
  }

  // (where, loss, target, params, grads, others). grads: as many as there are parameters, or none.
  // others: None, or mask, weight, state, whether that is one per sample, and the row starts and
  // columns of a sparse target.
  void run(PyObject* const* given) const {
    NllArgs a = args_;
    a.loss = data_of(given[1]);
    a.target.data = data_of(given[2]);
    PyObject* const* const params = items_of(given[3]);
    PyObject* const* const grads = items_of(given[4]);
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(given[3]);
    const bool graded = PySequence_Fast_GET_SIZE(given[4]) == count;
    for (Py_ssize_t j = 0; j < count && j < kMaxParams; ++j) {
      a.params[j].data = data_of(params[j]);
      if (graded) a.grads[j].data = data_of(grads[j]);
    }
    if (given[5] != Py_None) {
      PyObject* const* const others = items_of(given[5]);
      a.mask.data = data_of(others[0]);
      a.weight.data = data_of(others[1]);
      a.state.words = static_cast<const int64_t*>(data_of(others[2]));
      a.state.per_sample = others[3] == Py_True;
      a.row_starts = static_cast<const int64_t*>(data_of(others[4]));
      a.columns = static_cast<const int64_t*>(data_of(others[5]));
    }
    run_prepared<NllArgs>(VAEFAST_KERNEL(nll), a, given[0]);
  }

  // (where, upstream, its dtype, grads): gradients of the call's shape, each times the one number
  // upstream; on a GPU one launch for those of one dtype.
  void scale(PyObject* const* given) const {
    ScaleArgs a;
    a.shape = {1, args_.shape.rows * args_.shape.cols, 1};
    a.upstream.data = data_of(given[1]);
    a.upstream.dtype = static_cast<DType>(number(given[2]));
    PyObject* const* const grads = items_of(given[3]);
    const Py_ssize_t count = std::min<Py_ssize_t>(PySequence_Fast_GET_SIZE(given[3]), kMaxParams);
    Output left[kMaxParams];
    for (Py_ssize_t j = 0; j < count; ++j)
      left[j] = {data_of(grads[j]), args_.grads[j].dtype, args_.grads[j].nontemporal};
    for (Py_ssize_t j = 0; j < count; ++j) {
      if (!left[j]) continue;
      a.grad = left[j];
      int others = 0;
      for (Output& other : a.others) other = {};
      for (Py_ssize_t i = j + 1; i < count && !PyLong_Check(given[0]); ++i) {
        if (!left[i] || left[i].dtype != left[j].dtype) continue;
        a.others[others++] = left[i];
        left[i] = {};
      }
      run_prepared<ScaleArgs>(VAEFAST_KERNEL(scale), a, given[0]);
    }
  }

 private:
  NllArgs args_;
};

// (the call, what scales its gradients).
inline py::tuple prepare_nll(const py::tuple& grid, const py::tuple& params,
                             const py::object& target, const py::object& mask,
                             const py::object& weight, int64_t offset, const py::tuple& settings,
                             const py::tuple& grads) {
  using Call = PreparedNll;
  const py::capsule call = owned(Call(grid, params, target, mask, weight, offset, settings, grads));
  return py::make_tuple(prepared<Call, &Call::run, 6>(call), prepared<Call, &Call::scale, 4>(call));
}

VAEFAST_BIND(nll) { module.def("prepare_nll", &prepare_nll); }

}  // namespace python
}  // namespace vaefast
