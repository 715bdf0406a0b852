// What the operators over a posterior are given alike.
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

}  // namespace python
}  // namespace vaefast
