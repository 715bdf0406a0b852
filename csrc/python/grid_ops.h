// Operators over a grid of samples: sampling, KL, elementwise likelihoods, noise.
#pragma once

#include "python/unpack.h"

namespace vaefast {
namespace python {

// operands: mu, scale, prior_mu, prior_scale, mask, weight, noise.
// settings: param, min_std, clamp (0 none, 1 hard, 2 soft), low, high, samples, temperature,
// reduce, factor, wide.
inline SampleKlArgs sample_kl_args(const py::tuple& grid, const py::tuple& operands,
                                   const py::object& state, const py::tuple& settings) {
  SampleKlArgs a;
  a.shape = shape(grid);
  View* const views[] = {&a.mu,   &a.scale,  &a.prior_mu, &a.prior_scale,
                         &a.mask, &a.weight, &a.noise};
  for (size_t i = 0; i < 7; ++i) *views[i] = view(operands[i]);
  a.stream = stream(state);
  a.param = static_cast<Param>(at<int>(settings, 0));
  a.min_std = at<double>(settings, 1);
  a.clamp = static_cast<Clamp>(at<int>(settings, 2));
  a.low = at<double>(settings, 3);
  a.high = at<double>(settings, 4);
  a.samples = at<int64_t>(settings, 5);
  a.temperature = at<double>(settings, 6);
  a.reduce = static_cast<Reduce>(at<int>(settings, 7));
  a.factor = at<double>(settings, 8);
  a.wide = at<bool>(settings, 9);
  return a;
}

inline void sample_kl(const py::tuple& grid, const py::tuple& operands, const py::object& state,
                      const py::tuple& settings, const py::object& z, uint64_t kl, uint64_t kept,
                      const py::object& where) {
  SampleKlArgs a = sample_kl_args(grid, operands, state, settings);
  a.kept = memory(kept);
  a.z = output(z);
  a.kl = memory(kl);
  const int64_t elements = a.shape.rows * a.shape.cols;
  set_stream(a.z, elements * (a.samples > 1 ? a.samples : 1));
  a.nontemporal_kept = past_caches(elements * (a.wide ? 8 : 4));
  run<SampleKlArgs>(VAEFAST_KERNEL(sample_kl), a, where, a.samples > 1 ? a.samples : 1);
}

// A third number makes it sums over what the parameter broadcasts to.
inline void prior_output(const py::object& value, Output& grad, double*& sums, int64_t& size) {
  if (value.is_none()) return;
  const auto given = py::reinterpret_borrow<py::tuple>(value);
  if (given.size() == 2) {
    grad = output(given);
    return;
  }
  sums = static_cast<double*>(pointer(given));
  size = at<int64_t>(given, 2);
}

inline void sample_kl_backward(const py::tuple& grid, const py::tuple& operands,
                               const py::object& state, const py::tuple& settings,
                               const py::object& grad_z, const py::object& grad_kl, uint64_t kept,
                               const py::tuple& grads, const py::object& where) {
  SampleKlArgs a = sample_kl_args(grid, operands, state, settings);
  a.kept = memory(kept);
  a.grad_z = view(grad_z);
  a.grad_kl = view(grad_kl);
  a.grad_mu = output(grads[0]);
  a.grad_scale = output(grads[1]);
  prior_output(grads[2], a.grad_prior_mu, a.sum_prior_mu, a.prior_mu_size);
  prior_output(grads[3], a.grad_prior_scale, a.sum_prior_scale, a.prior_scale_size);
  const int64_t elements = a.shape.rows * a.shape.cols;
  for (Output* grad : {&a.grad_mu, &a.grad_scale, &a.grad_prior_mu, &a.grad_prior_scale})
    set_stream(*grad, elements);
  // What was just read lies in the cache.
  if (a.grad_scale.data == a.kept) a.grad_scale.nontemporal = false;
  run<SampleKlArgs>(VAEFAST_KERNEL(sample_kl_backward), a, where, a.samples > 1 ? a.samples : 1);
}

// kl: [samples, posteriors].
inline void estimated_kl(const py::tuple& grid, const py::tuple& operands, const py::object& state,
                         const py::tuple& settings, const py::object& z, uint64_t kl,
                         const py::object& where) {
  EstimatedKlArgs a;
  a.q = sample_kl_args(grid, operands, state, settings);
  a.q.z = output(z);
  a.q.kl = memory(kl);
  set_stream(a.q.z, a.q.shape.rows * a.q.shape.cols * a.q.samples);
  run<EstimatedKlArgs>(VAEFAST_KERNEL(estimated_kl), a, where, a.q.samples);
}

inline void estimated_kl_backward(const py::tuple& grid, const py::tuple& operands,
                                  const py::object& state, const py::tuple& settings,
                                  bool stop_posterior, const py::object& grad_z,
                                  const py::object& grad_kl, const py::tuple& grads,
                                  const py::object& where) {
  EstimatedKlArgs a;
  a.q = sample_kl_args(grid, operands, state, settings);
  a.stop_posterior = stop_posterior;
  a.q.grad_z = view(grad_z);
  a.q.grad_kl = view(grad_kl);
  a.q.grad_mu = output(grads[0]);
  a.q.grad_scale = output(grads[1]);
  a.q.grad_prior_mu = output(grads[2]);
  a.q.grad_prior_scale = output(grads[3]);
  run<EstimatedKlArgs>(VAEFAST_KERNEL(estimated_kl_backward), a, where, a.q.samples);
}

// The operands' noise is None; settings as for sample_kl.
inline LogRatioArgs log_ratio_args(const py::tuple& grid, const py::tuple& operands,
                                   const py::object& z, const py::tuple& settings, bool prior) {
  LogRatioArgs a;
  a.q = sample_kl_args(grid, operands, py::none(), settings);
  a.prior = prior;
  a.z = view(z);
  return a;
}

inline void log_ratio(const py::tuple& grid, const py::tuple& operands, const py::object& z,
                      const py::tuple& settings, bool prior, uint64_t value,
                      const py::object& where) {
  LogRatioArgs a = log_ratio_args(grid, operands, z, settings, prior);
  a.value = memory(value);
  run<LogRatioArgs>(VAEFAST_KERNEL(log_ratio), a, where, a.q.samples);
}

inline void log_ratio_backward(const py::tuple& grid, const py::tuple& operands,
                               const py::object& z, const py::tuple& settings, bool prior,
                               const py::object& upstream, const py::tuple& grads,
                               const py::object& where) {
  LogRatioArgs a = log_ratio_args(grid, operands, z, settings, prior);
  a.upstream = view(upstream);
  a.grad_z = output(grads[0]);
  a.q.grad_mu = output(grads[1]);
  a.q.grad_scale = output(grads[2]);
  a.q.grad_prior_mu = output(grads[3]);
  a.q.grad_prior_scale = output(grads[4]);
  run<LogRatioArgs>(VAEFAST_KERNEL(log_ratio_backward), a, where, a.q.samples);
}

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

inline void nll(const py::tuple& grid, const py::tuple& params, const py::object& target,
                const py::object& mask, const py::object& weight, const py::object& state,
                const py::tuple& settings, uint64_t loss, const py::tuple& grads,
                const py::object& where, uint64_t row_starts, uint64_t columns) {
  NllArgs a = nll_args(grid, params, target, settings);
  for (size_t j = 0; j < params.size(); ++j) a.grads[j] = output(grads[j]);
  a.mask = view(mask);
  a.weight = view(weight);
  a.row_starts = static_cast<const int64_t*>(memory(row_starts));
  a.columns = static_cast<const int64_t*>(memory(columns));
  a.stream = stream(state);
  a.loss = memory(loss);
  for (Output& grad : a.grads) set_stream(grad, a.shape.rows * a.shape.cols);
  run<NllArgs>(VAEFAST_KERNEL(nll), a, where);
}

inline void noise(const py::tuple& grid, const py::object& state, bool normal, uint32_t purpose,
                  const py::object& out, const py::object& where) {
  NoiseArgs a;
  a.shape = shape(grid);
  a.stream = stream(state);
  a.normal = normal;
  a.purpose = purpose;
  a.out = output(out);
  set_stream(a.out, a.shape.rows * a.shape.cols);
  run<NoiseArgs>(VAEFAST_KERNEL(noise), a, where);
}

inline void scale(const py::tuple& grid, const py::object& grad, const py::object& upstream,
                  const py::object& where) {
  ScaleArgs a;
  a.shape = shape(grid);
  a.grad = output(grad);
  a.upstream = view(upstream);
  run<ScaleArgs>(VAEFAST_KERNEL(scale), a, where);
}

}  // namespace python
}  // namespace vaefast
