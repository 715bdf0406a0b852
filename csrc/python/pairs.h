// Operators over pairs of points.
#pragma once

#include "python/unpack.h"

namespace vaefast {
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

inline constexpr Kernel<GaussianMixtureArgs> kMixtureLogProb = VAEFAST_KERNEL(mixture_log_prob);
inline constexpr Kernel<GaussianMixtureArgs> kMixtureLogProbBackward =
    VAEFAST_KERNEL(mixture_log_prob_backward);
inline constexpr Kernel<GaussianMixtureArgs> kTcTerms = VAEFAST_KERNEL(tc_terms);
inline constexpr Kernel<GaussianMixtureArgs> kTcTermsBackward = VAEFAST_KERNEL(tc_terms_backward);

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

}  // namespace python
}  // namespace vaefast
