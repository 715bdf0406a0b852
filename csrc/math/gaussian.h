// The diagonal Gaussian posterior: what its scale parameter means, and its KL divergence.
#pragma once

#include "core/args.h"
#include "special.h"

namespace vaefast {
namespace VAEFAST_ISA {

// log sigma^2, sigma and d log sigma^2 / d scale.
template <class T>
struct Scale {
  T logvar, std, slope;
};

// From the raw parameter s, after its clamp; `bend` is the clamp's own derivative.
template <Param kParam, class T>
VAEFAST_FN Scale<T> scale_of(T s, T bend, T min_std) {
  if constexpr (kParam == Param::kLogvar) {
    return {s, exp(T(0.5) * s), bend};
  } else if constexpr (kParam == Param::kLogStd) {
    return {T(2) * s, exp(s), T(2) * bend};
  } else if constexpr (kParam == Param::kStd) {
    return {T(2) * log(s), s, T(2) * bend / s};
  } else if constexpr (kParam == Param::kVar) {
    return {log(s), sqrt(s), bend / s};
  } else {
    const T std = softplus(s) + min_std;
    return {T(2) * log(std), std, T(2) * bend * sigmoid(s) / std};
  }
}

// As torch.clamp: NaN stays, and the derivative is 1 on the bounds themselves.
template <class T>
VAEFAST_FN T clamp_hard(T s, T low, T high, T& bend) {
  bend = (s < low) | (s > high) ? T(0) : T(1);
  const T above = s < low ? low : s;
  return above > high ? high : above;
}

// NVAE's bound (Vahdat and Kautz 2020): middle + half tanh((s - middle) / half).
template <class T>
VAEFAST_FN T clamp_soft(T s, T low, T high, T& bend) {
  const T middle = T(0.5) * (high + low), half = T(0.5) * (high - low);
  const T t = tanh((s - middle) / half);
  bend = T(1) - t * t;
  return middle + half * t;
}

// KL(N(m, e^logvar) || N(0, 1)): exact near collapse, where the usual form cancels.
template <class T>
VAEFAST_FN T kl_standard(T mu, T logvar) {
  return T(0.5) * (mu * mu + expm1_minus_x(logvar));
}

// KL against N(prior_mu, e^prior_logvar); distance = mu - prior_mu, d = logvar - prior_logvar.
template <class T>
VAEFAST_FN T kl_prior(T distance, T logvar, T prior_logvar) {
  return T(0.5) * (distance * distance * exp(-prior_logvar) + expm1_minus_x(logvar - prior_logvar));
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
