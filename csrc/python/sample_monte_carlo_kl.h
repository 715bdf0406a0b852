// `sample_monte_carlo_kl` and its backward pass.
#pragma once

#include "python/bind.h"
#include "python/posterior.h"

namespace vaefast {

inline void set_threads(SampleMonteCarloKlArgs& args, int threads, int64_t copies) {
  python::set_threads(args.q, threads, copies);
}

namespace python {

// kl: [samples, posteriors].
inline SampleMonteCarloKlArgs sample_monte_carlo_kl_args(const py::tuple& grid,
                                                         const py::tuple& operands,
                                                         const py::object& state,
                                                         const py::tuple& settings,
                                                         const py::object& z, uint64_t kl) {
  SampleMonteCarloKlArgs a;
  a.q = sample_kl_args(grid, operands, state, settings);
  a.q.z = output(z);
  a.q.kl = memory(kl);
  set_nontemporal(a.q.z, a.q.shape.rows * a.q.shape.cols * a.q.samples);
  return a;
}

inline void sample_monte_carlo_kl(const py::tuple& grid, const py::tuple& operands,
                                  const py::object& state, const py::tuple& settings,
                                  const py::object& z, uint64_t kl, const py::object& where) {
  SampleMonteCarloKlArgs a = sample_monte_carlo_kl_args(grid, operands, state, settings, z, kl);
  run<SampleMonteCarloKlArgs>(VAEFAST_KERNEL(sample_monte_carlo_kl), a, where, a.q.samples);
}

inline void sample_monte_carlo_kl_backward(const py::tuple& grid, const py::tuple& operands,
                                           const py::object& state, const py::tuple& settings,
                                           bool stop_posterior, const py::object& grad_z,
                                           const py::object& grad_kl, const py::tuple& grads,
                                           const py::object& where) {
  SampleMonteCarloKlArgs a;
  a.q = sample_kl_args(grid, operands, state, settings);
  a.stop_posterior = stop_posterior;
  a.q.grad_z = view(grad_z);
  a.q.grad_kl = view(grad_kl);
  a.q.grad_mu = output(grads[0]);
  a.q.grad_scale = output(grads[1]);
  a.q.grad_prior_mu = output(grads[2]);
  a.q.grad_prior_scale = output(grads[3]);
  run<SampleMonteCarloKlArgs>(VAEFAST_KERNEL(sample_monte_carlo_kl_backward), a, where,
                              a.q.samples);
}

VAEFAST_BIND(sample_monte_carlo_kl) {
  module.def("sample_monte_carlo_kl", &sample_monte_carlo_kl);
  module.def("sample_monte_carlo_kl_backward", &sample_monte_carlo_kl_backward);
  VAEFAST_BIND_WORKSPACE(sample_monte_carlo_kl, sample_monte_carlo_kl_args);
}

}  // namespace python
}  // namespace vaefast
