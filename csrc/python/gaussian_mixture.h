// What the operators over points and a mixture of Gaussians are given alike.
#pragma once

#include "python/bind.h"

namespace vaefast {

inline void set_threads(GaussianMixtureArgs& args, int threads, int64_t) {
  args.threads = python::useful_pair_threads(args.points * args.components, args.dims, threads);
}

namespace python {

// sizes: points, components, dims; inputs: z, mu, logvar, log_weights;
// weighing: log_weight, first, own, stratum; saved: joint, marginals. Addresses, 0 for none.
inline GaussianMixtureArgs gaussian_mixture_args(const py::tuple& sizes, const py::tuple& inputs,
                                                 const py::tuple& weighing, const py::tuple& saved,
                                                 bool wide) {
  GaussianMixtureArgs a;
  a.points = at<int64_t>(sizes, 0);
  a.components = at<int64_t>(sizes, 1);
  a.dims = at<int64_t>(sizes, 2);
  a.z = address(inputs, 0);
  a.mu = address(inputs, 1);
  a.logvar = address(inputs, 2);
  a.log_weights = address(inputs, 3);
  a.log_weight = at<double>(weighing, 0);
  a.first = at<int64_t>(weighing, 1);
  a.own = at<double>(weighing, 2);
  a.stratum = at<double>(weighing, 3);
  a.joint = address<double>(saved, 0);
  a.marginals = address(saved, 1);
  a.wide = wide;
  return a;
}

inline GaussianMixtureArgs gaussian_mixture_forward_args(const py::tuple& sizes,
                                                         const py::tuple& inputs,
                                                         const py::tuple& weighing,
                                                         const py::tuple& saved, uint64_t values,
                                                         bool wide) {
  GaussianMixtureArgs a = gaussian_mixture_args(sizes, inputs, weighing, saved, wide);
  a.values = memory(values);
  return a;
}

// grads: of z, mu, logvar and log_weights.
inline GaussianMixtureArgs gaussian_mixture_backward_args(const py::tuple& sizes,
                                                          const py::tuple& inputs,
                                                          const py::tuple& weighing,
                                                          const py::tuple& saved, uint64_t upstream,
                                                          const py::tuple& grads, bool wide) {
  GaussianMixtureArgs a = gaussian_mixture_args(sizes, inputs, weighing, saved, wide);
  a.upstream = memory(upstream);
  a.grad_z = address(grads, 0);
  a.grad_mu = address(grads, 1);
  a.grad_logvar = address(grads, 2);
  a.grad_log_weights = address(grads, 3);
  return a;
}

template <const Kernel<GaussianMixtureArgs>& kernel>
void gaussian_mixture_forward(const py::tuple& sizes, const py::tuple& inputs,
                              const py::tuple& weighing, const py::tuple& saved, uint64_t values,
                              bool wide, const py::object& where) {
  GaussianMixtureArgs a =
      gaussian_mixture_forward_args(sizes, inputs, weighing, saved, values, wide);
  run<GaussianMixtureArgs>(kernel, a, where);
}

template <const Kernel<GaussianMixtureArgs>& kernel>
void gaussian_mixture_backward(const py::tuple& sizes, const py::tuple& inputs,
                               const py::tuple& weighing, const py::tuple& saved, uint64_t upstream,
                               const py::tuple& grads, bool wide, const py::object& where) {
  GaussianMixtureArgs a =
      gaussian_mixture_backward_args(sizes, inputs, weighing, saved, upstream, grads, wide);
  run<GaussianMixtureArgs>(kernel, a, where);
}

}  // namespace python
}  // namespace vaefast
