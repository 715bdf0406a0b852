// Calls made ready but for their tensors and where they run, as functions of Python's. What such a
// function takes are tensors themselves, None for an absent one: that is fewer bytecodes, of which
// a small call is half made, than to ask each for its address first.
#pragma once

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>

#include "python/grid_ops.h"

namespace vaefast {
namespace python {

// An absent tensor's and an empty one's is null. That of one with elements can be too: a storage
// may have been resized to nothing.
inline void* data_of(PyObject* tensor) {
  static PyObject* const name = PyUnicode_InternFromString("data_ptr");
  if (tensor == Py_None) return nullptr;
  PyObject* const found = PyObject_CallMethodNoArgs(tensor, name);
  if (found == nullptr) throw py::error_already_set();
  void* const data = PyLong_AsVoidPtr(found);
  Py_DECREF(found);
  if (data == nullptr) {
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    const py::handle given(tensor);
    if (given.attr("numel")().cast<int64_t>() > 0)
      throw std::runtime_error("a tensor of shape " +
                               py::str(given.attr("shape")).cast<std::string>() +
                               " has no memory: its storage was resized to nothing");
  }
  return data;
}

// The items of a tuple or list.
inline PyObject* const* items_of(PyObject* sequence) { return PySequence_Fast_ITEMS(sequence); }

inline int64_t number(PyObject* value) {
  const int64_t found = PyLong_AsLongLong(value);
  if (found == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return found;
}

// One of Call's member functions with `count` arguments, without pybind11's way of taking them
// apart.
template <class Call, void (Call::*run)(PyObject* const*) const, int count>
PyObject* call_prepared(PyObject* self, PyObject* const* args, Py_ssize_t given) {
  if (given != count) {
    PyErr_Format(PyExc_TypeError, "a prepared call takes %d arguments, got %zd", count, given);
    return nullptr;
  }
  try {
    (static_cast<const Call*>(PyCapsule_GetPointer(self, nullptr))->*run)(args);
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

template <class Call, void (Call::*run)(PyObject* const*) const, int count>
py::object prepared(const py::capsule& owner) {
  static PyMethodDef definition = {
      "prepared",
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_prepared<Call, run, count>)),
      METH_FASTCALL, nullptr};
  return py::reinterpret_steal<py::object>(PyCFunction_NewEx(&definition, owner.ptr(), nullptr));
}

template <class Call>
py::capsule owned(const Call& call) {
  return py::capsule(new Call(call), [](void* made) { delete static_cast<Call*>(made); });
}

// Where a prepared call runs is its first argument.
template <class Args>
void run_prepared(const Kernel<Args>& kernel, Args& args, PyObject* where, int64_t copies = 1) {
  run<Args>(kernel, args, py::reinterpret_borrow<py::object>(where), copies);
}

class PreparedSampleKl {
 public:
  // grads: the dtype of each parameter's gradient. sums: of the prior's two, how many numbers its
  // gradient is summed to over what it broadcasts to, or 0.
  PreparedSampleKl(const py::tuple& grid, const py::tuple& operands, const py::object& grad_z,
                   const py::object& grad_kl, int64_t offset, const py::tuple& settings,
                   const py::tuple& grads, const py::tuple& sums)
      : args_(sample_kl_args(grid, operands, py::none(), settings)) {
    SampleKlArgs& a = args_;
    a.state.offset = offset;
    a.grad_z = view(grad_z);
    a.grad_kl = view(grad_kl);
    a.z.dtype = a.mu.dtype;
    const int64_t elements = a.shape.rows * a.shape.cols;
    a.z.nontemporal = past_caches(elements * copies(a) * width(a.z.dtype));
    a.nontemporal_kept = past_caches(elements * (a.wide ? 8 : 4));
    Output* const outputs[] = {&a.grad_mu, &a.grad_scale, &a.grad_prior_mu, &a.grad_prior_scale};
    for (size_t i = 0; i < 4; ++i) {
      outputs[i]->dtype = static_cast<DType>(at<int>(grads, i));
      outputs[i]->nontemporal = past_caches(elements * width(outputs[i]->dtype));
    }
    a.prior_mu_size = at<int64_t>(sums, 0);
    a.prior_scale_size = at<int64_t>(sums, 1);
  }

  // (where, mu, scale, others, state, state_kind, z, kl, kept). others: None, or prior_mu,
  // prior_scale, mask, weight and noise. state_kind: 1 where there is a state per sample, 2 where
  // the state is new and its second number still to become 0.
  void forward(PyObject* const* given) const {
    SampleKlArgs a = placed(given);
    const int64_t kind = number(given[5]);
    int64_t* const state = static_cast<int64_t*>(data_of(given[4]));
    a.state.fresh = kind == 2 && !PyLong_Check(given[0]);
    if (kind == 2 && !a.state.fresh) state[1] = 0;
    a.state.words = state;
    a.state.per_sample = kind == 1;
    a.z.data = data_of(given[6]);
    a.kl = data_of(given[7]);
    a.kept = data_of(given[8]);
    run_prepared<SampleKlArgs>(VAEFAST_KERNEL(sample_kl), a, given[0], copies(a));
  }

  // (where, mu, scale, others, state, state_kind, grad_z, z_expanded, grad_kl, kl_step, kept,
  // grad_mu, grad_scale). others: as above, and then room for the prior's gradients. z_expanded:
  // grad_z is one number. kl_step: from one sample's upstream gradient of the KL to the next one's;
  // -1 where grad_kl is laid out as was said when the call was made.
  void backward(PyObject* const* given) const {
    SampleKlArgs a = placed(given);
    a.kept = data_of(given[10]);
    if (a.kept == nullptr) {
      a.state.words = static_cast<const int64_t*>(data_of(given[4]));
      a.state.per_sample = number(given[5]) == 1;
    }
    a.grad_z.data = data_of(given[6]);
    if (given[6] == Py_None) a.samples = 0;
    if (given[7] == Py_True) a.grad_z.row_stride = a.grad_z.col_stride = 0;
    const int64_t step = number(given[9]);
    if (step >= 0) {
      const int64_t samples = a.shape.rows / a.shape.segments;
      a.grad_kl.div = a.shape.segments;
      a.grad_kl.mod = samples > 0 ? samples : 1;
      a.grad_kl.row_stride = step;
      a.grad_kl.col_stride = 0;
    }
    a.grad_kl.data = data_of(given[8]);
    a.grad_mu.data = data_of(given[11]);
    a.grad_scale.data = data_of(given[12]);
    // What was just read lies in the cache.
    if (a.grad_scale.data == a.kept) a.grad_scale.nontemporal = false;
    if (given[3] != Py_None) {
      PyObject* const* const rooms = items_of(given[3]) + 5;
      prior(rooms[0], a.grad_prior_mu, a.sum_prior_mu, a.prior_mu_size);
      prior(rooms[1], a.grad_prior_scale, a.sum_prior_scale, a.prior_scale_size);
    }
    run_prepared<SampleKlArgs>(VAEFAST_KERNEL(sample_kl_backward), a, given[0], copies(a));
  }

 private:
  static int64_t copies(const SampleKlArgs& a) { return a.samples > 1 ? a.samples : 1; }

  SampleKlArgs placed(PyObject* const* given) const {
    SampleKlArgs a = args_;
    a.mu.data = data_of(given[1]);
    a.scale.data = data_of(given[2]);
    if (given[3] == Py_None) return a;
    View* const views[] = {&a.prior_mu, &a.prior_scale, &a.mask, &a.weight, &a.noise};
    for (size_t i = 0; i < 5; ++i) views[i]->data = data_of(items_of(given[3])[i]);
    return a;
  }

  static void prior(PyObject* room, Output& grad, double*& sums, int64_t size) {
    if (size > 0)
      sums = static_cast<double*>(data_of(room));
    else
      grad.data = data_of(room);
  }

  SampleKlArgs args_;
};

// (forward, backward).
inline py::tuple prepare_sample_kl(const py::tuple& grid, const py::tuple& operands,
                                   const py::object& grad_z, const py::object& grad_kl,
                                   int64_t offset, const py::tuple& settings,
                                   const py::tuple& grads, const py::tuple& sums) {
  using Call = PreparedSampleKl;
  const py::capsule call =
      owned(Call(grid, operands, grad_z, grad_kl, offset, settings, grads, sums));
  return py::make_tuple(prepared<Call, &Call::forward, 9>(call),
                        prepared<Call, &Call::backward, 13>(call));
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

}  // namespace python
}  // namespace vaefast
