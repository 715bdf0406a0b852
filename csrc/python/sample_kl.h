// `sample_kl` and its backward pass.
#pragma once

#include "python/posterior.h"
#include "python/prepared.h"

namespace vaefast {
namespace python {

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

VAEFAST_BIND(sample_kl) { module.def("prepare_sample_kl", &prepare_sample_kl); }

}  // namespace python
}  // namespace vaefast
