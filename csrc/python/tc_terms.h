// The terms of a total correlation.
#pragma once

#include "python/gaussian_mixture.h"

namespace vaefast {
namespace python {

inline constexpr Kernel<GaussianMixtureArgs> kTcTerms = VAEFAST_KERNEL(tc_terms);
inline constexpr Kernel<GaussianMixtureArgs> kTcTermsBackward = VAEFAST_KERNEL(tc_terms_backward);

VAEFAST_BIND(tc_terms) {
  module.def("tc_terms", &gaussian_mixture_forward<kTcTerms>);
  module.def("tc_terms_backward", &gaussian_mixture_backward<kTcTermsBackward>);
  VAEFAST_BIND_WORKSPACE(tc_terms, gaussian_mixture_forward_args);
  VAEFAST_BIND_WORKSPACE(tc_terms_backward, gaussian_mixture_backward_args);
}

}  // namespace python
}  // namespace vaefast
