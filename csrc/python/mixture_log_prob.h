// The log density of a mixture of Gaussians.
#pragma once

#include "python/gaussian_mixture.h"

namespace vaefast {
namespace python {

inline constexpr Kernel<GaussianMixtureArgs> kMixtureLogProb = VAEFAST_KERNEL(mixture_log_prob);
inline constexpr Kernel<GaussianMixtureArgs> kMixtureLogProbBackward =
    VAEFAST_KERNEL(mixture_log_prob_backward);

VAEFAST_BIND(mixture_log_prob) {
  module.def("mixture_log_prob", &gaussian_mixture_forward<kMixtureLogProb>);
  module.def("mixture_log_prob_backward", &gaussian_mixture_backward<kMixtureLogProbBackward>);
  VAEFAST_BIND_WORKSPACE(mixture_log_prob, gaussian_mixture_forward_args);
  VAEFAST_BIND_WORKSPACE(mixture_log_prob_backward, gaussian_mixture_backward_args);
}

}  // namespace python
}  // namespace vaefast
