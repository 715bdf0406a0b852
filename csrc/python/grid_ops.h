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
  a.state = noise_state(state);
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

// kl: [samples, posteriors].
inline void sample_monte_carlo_kl(const py::tuple& grid, const py::tuple& operands,
                                  const py::object& state, const py::tuple& settings,
                                  const py::object& z, uint64_t kl, const py::object& where) {
  SampleMonteCarloKlArgs a;
  a.q = sample_kl_args(grid, operands, state, settings);
  a.q.z = output(z);
  a.q.kl = memory(kl);
  set_nontemporal(a.q.z, a.q.shape.rows * a.q.shape.cols * a.q.samples);
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

// The operands' noise is None; settings as for sample_kl.
inline MonteCarloKlArgs monte_carlo_kl_args(const py::tuple& grid, const py::tuple& operands,
                                            const py::object& z, const py::tuple& settings,
                                            bool prior) {
  MonteCarloKlArgs a;
  a.q = sample_kl_args(grid, operands, py::none(), settings);
  a.prior = prior;
  a.z = view(z);
  return a;
}

inline void monte_carlo_kl(const py::tuple& grid, const py::tuple& operands, const py::object& z,
                           const py::tuple& settings, bool prior, uint64_t value,
                           const py::object& where) {
  MonteCarloKlArgs a = monte_carlo_kl_args(grid, operands, z, settings, prior);
  a.value = memory(value);
  run<MonteCarloKlArgs>(VAEFAST_KERNEL(monte_carlo_kl), a, where, a.q.samples);
}

inline void monte_carlo_kl_backward(const py::tuple& grid, const py::tuple& operands,
                                    const py::object& z, const py::tuple& settings, bool prior,
                                    const py::object& upstream, const py::tuple& grads,
                                    const py::object& where) {
  MonteCarloKlArgs a = monte_carlo_kl_args(grid, operands, z, settings, prior);
  a.upstream = view(upstream);
  a.grad_z = output(grads[0]);
  a.q.grad_mu = output(grads[1]);
  a.q.grad_scale = output(grads[2]);
  a.q.grad_prior_mu = output(grads[3]);
  a.q.grad_prior_scale = output(grads[4]);
  run<MonteCarloKlArgs>(VAEFAST_KERNEL(monte_carlo_kl_backward), a, where, a.q.samples);
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

inline void noise(const py::tuple& grid, const py::object& state, bool normal, uint32_t purpose,
                  const py::object& out, const py::object& where) {
  NoiseArgs a;
  a.shape = shape(grid);
  a.state = noise_state(state);
  a.normal = normal;
  a.purpose = purpose;
  a.out = output(out);
  set_nontemporal(a.out, a.shape.rows * a.shape.cols);
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
