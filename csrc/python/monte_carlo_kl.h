// `monte_carlo_kl` and its backward pass.
#pragma once

#include "python/bind.h"
#include "python/posterior.h"

namespace vaefast {

inline void set_threads(MonteCarloKlArgs& args, int threads, int64_t copies) {
  python::set_threads(args.q, threads, copies);
}

namespace python {

// The operands' noise is None; settings as for sample_kl.
inline MonteCarloKlArgs monte_carlo_kl_args(const py::tuple& grid, const py::tuple& operands,
                                            const py::object& z, const py::tuple& settings,
                                            bool prior, uint64_t value) {
  MonteCarloKlArgs a;
  a.q = sample_kl_args(grid, operands, py::none(), settings);
  a.prior = prior;
  a.z = view(z);
  a.value = memory(value);
  return a;
}

inline void monte_carlo_kl(const py::tuple& grid, const py::tuple& operands, const py::object& z,
                           const py::tuple& settings, bool prior, uint64_t value,
                           const py::object& where) {
  MonteCarloKlArgs a = monte_carlo_kl_args(grid, operands, z, settings, prior, value);
  run<MonteCarloKlArgs>(VAEFAST_KERNEL(monte_carlo_kl), a, where, a.q.samples);
}

inline void monte_carlo_kl_backward(const py::tuple& grid, const py::tuple& operands,
                                    const py::object& z, const py::tuple& settings, bool prior,
                                    const py::object& upstream, const py::tuple& grads,
                                    const py::object& where) {
  MonteCarloKlArgs a = monte_carlo_kl_args(grid, operands, z, settings, prior, 0);
  a.upstream = view(upstream);
  a.grad_z = output(grads[0]);
  a.q.grad_mu = output(grads[1]);
  a.q.grad_scale = output(grads[2]);
  a.q.grad_prior_mu = output(grads[3]);
  a.q.grad_prior_scale = output(grads[4]);
  run<MonteCarloKlArgs>(VAEFAST_KERNEL(monte_carlo_kl_backward), a, where, a.q.samples);
}

VAEFAST_BIND(monte_carlo_kl) {
  module.def("monte_carlo_kl", &monte_carlo_kl);
  module.def("monte_carlo_kl_backward", &monte_carlo_kl_backward);
  VAEFAST_BIND_WORKSPACE(monte_carlo_kl, monte_carlo_kl_args);
}

}  // namespace python
}  // namespace vaefast
