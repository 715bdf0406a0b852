// The diagonal Gaussian posterior: what its scale parameter means, and its KL divergence.
#pragma once

#include "bounded.h"
#include "core/args.h"

namespace vaefast {
namespace VAEFAST_ISA {

// The log-variances whose exponentials are normal numbers, far from overflow.
template <class T>
constexpr T kNormalLogvar = sizeof(T) == 4 ? T(86) : T(700);

template <class T>
VAEFAST_FN bool usual_logvar(T s) {
  return abs(s) < kNormalLogvar<T>;
}

// What is made of a log-variance s: sigma, e^s - 1 - s and e^s - 1, each of any s, and of a usual
// one in a form that is quicker on a GPU.
struct StdOf {
  template <class T>
  VAEFAST_MEMBER static T usual(T s) {
    return exp_normal(T(0.5) * s);
  }
  template <class T>
  VAEFAST_MEMBER static T any(T s) {
    return exp(T(0.5) * s);
  }
};

struct ExcessOf {
  template <class T>
  VAEFAST_MEMBER static T usual(T s) {
    return expm1_minus_x_normal(s);
  }
  template <class T>
  VAEFAST_MEMBER static T any(T s) {
    return expm1_minus_x(s);
  }
};

struct GrowthOf {
  template <class T>
  VAEFAST_MEMBER static T usual(T s) {
    return expm1_normal(s);
  }
  template <class T>
  VAEFAST_MEMBER static T any(T s) {
    return expm1(s);
  }
};

// On a GPU every kernel takes the quick form of a usual s, so that which kernel serves a call (with
// a mask, a clamp, the KL at the samples) changes no bits.
template <class Made, class T>
VAEFAST_FN T of_logvar(T s) {
#if VAEFAST_DEVICE
  return rarely(!usual_logvar(s)) ? Made::any(s) : Made::usual(s);
#else
  return Made::any(s);
#endif
}

// log sigma^2, sigma and d log sigma^2 / d scale.
template <class T>
struct Scale {
  T logvar, std, slope;
};

// The numbers of a call that a scale parameter is transformed by.
template <class T>
struct ScaleNumbers {
  T low, high, min_std;

  template <class Args>
  explicit ScaleNumbers(const Args& args)
      : low(T(args.low)), high(T(args.high)), min_std(T(args.min_std)) {}
};

// From the raw parameter s, after its clamp; `clamp_grad` is the clamp's own derivative.
template <Param kParam, class T>
VAEFAST_FN Scale<T> scale_of(T s, T clamp_grad, const ScaleNumbers<T>& numbers) {
  if constexpr (kParam == Param::kLogvar) {
    return {s, of_logvar<StdOf>(s), clamp_grad};
  } else if constexpr (kParam == Param::kLogStd) {
    return {T(2) * s, exp(s), T(2) * clamp_grad};
  } else if constexpr (kParam == Param::kStd) {
    return {T(2) * log(s), s, T(2) * clamp_grad / s};
  } else if constexpr (kParam == Param::kVar) {
    return {log(s), sqrt(s), clamp_grad / s};
  } else {
    const T std = softplus(s) + numbers.min_std;
    return {T(2) * log(std), std, T(2) * clamp_grad * sigmoid(s) / std};
  }
}

// As torch.clamp: NaN stays, and the derivative is 1 on the bounds themselves.
template <class T>
VAEFAST_FN T clamp_hard(T s, T low, T high, T& clamp_grad) {
  clamp_grad = (s < low) | (s > high) ? T(0) : T(1);
  const T above = s < low ? low : s;
  return above > high ? high : above;
}

// NVAE's bound (Vahdat and Kautz 2020): middle + half tanh((s - middle) / half). Away from the
// middle the distance to the nearer bound is what is small, and has digits of its own: where a
// bound is 0 the result is as right as that.
template <class T>
VAEFAST_FN T clamp_soft(T s, T low, T high, T& clamp_grad) {
  const T middle = T(0.5) * (high + low), half = T(0.5) * (high - low);
  const T u = (s - middle) / half;
  T rest;
  const T t = tanh_and_slope(u, rest, clamp_grad);
  const T above = u < T(0) ? madd(half, rest, low) : madd(-half, rest, high);
  return abs(u) < T(0.5) ? madd(half, t, middle) : above;
}

// KL(N(m, e^logvar) || N(0, 1)): exact near collapse, where the usual form cancels.
template <class T>
VAEFAST_FN T kl_of(T mu, T excess) {
#if VAEFAST_DEVICE
  return T(0.5) * madd(mu, mu, excess);
#else
  return T(0.5) * (mu * mu + excess);
#endif
}

template <class T>
VAEFAST_FN T kl_standard(T mu, T logvar) {
  return kl_of(mu, of_logvar<ExcessOf>(logvar));
}

// sqrt(log2(e) / 2): log2 N(z; mu, sigma^2) is log2(rate) - ((z - mu) rate)^2 and a constant, with
// the rate 1 / sigma times this.
constexpr double kUnitRate = 0.84932180028801904272;

// A sigma below e^-73 (double: e^-680) counts as that: at z = mu the distance stays 0, and up to
// z - mu = 6e6 (1e12) it is finite, as it must be where a weight of 0 is multiplied by it.
template <class T>
VAEFAST_FN T rate_of(T logvar) {
  const T most = sizeof(T) == 4 ? T(73) : T(680), power = T(-0.5) * logvar;
  return T(kUnitRate) * exp_finite(power > most ? most : power);
}

// sigma = e^(logvar/2), <= 1 ulp, and what the KL to N(0, 1) takes of it,
// (e^logvar - 1 - logvar) / 2, <= 5 ulp, both from one reduction of h = logvar/2. With
// sigma = 2^n (1 + s), s = low + a and power = 2^n the latter is
// power^2/2 (s^2 + 2s) + power^2/2 - 1/2 - h, where s - h is the polynomial itself for n = 0, so
// that nothing cancels.
template <class T>
VAEFAST_FN T kl_from(T power, T s, T low, T a, T h) {
  const T square = T(0.5) * power * power;
  const T linear = madd(square, a + a, square - T(0.5)) - h;
  return madd(square, madd(s, s, low + low), linear);
}

// 2^n is applied in two halves, as by exp: for n = 128, and denormals.
VAEFAST_FN void std_and_kl(float logvar, float& std, float& kl) {
  const float h = 0.5f * logvar;
  float c = h < -104.0f ? -104.0f : h;
  c = c > 89.0f ? 89.0f : c;
  uint32_t k;
  float a;
  const float low = exp_reduce(c, 254.0f, k, a);
  const float s = low + a;
  const uint32_t half = k >> 1;
  const float first = as_float(half << 23), second = as_float((k - half) << 23);
  std = (s + 1.0f) * first * second;
  const float y = kl_from(first * second, s, low, a, h);
  kl = logvar > 89.4159851f ? kInfF : y;
}

VAEFAST_FN void std_and_kl(double logvar, double& std, double& kl) {
  const double h = 0.5 * logvar;
  double c = h < -746.0 ? -746.0 : h;
  c = c > 710.0 ? 710.0 : c;
  uint64_t k;
  double a;
  const double low = exp_reduce(c, 2046.0, k, a);
  const double s = low + a;
  const uint64_t half = k >> 1;
  const double first = as_double(half << 52), second = as_double((k - half) << 52);
  std = (s + 1.0) * first * second;
  const double y = kl_from(first * second, s, low, a, h);
  kl = logvar > 710.475860073943942 ? kInf : y;
}

// The same bits as std_and_kl for |logvar| < kNormalLogvar: no clamp, and one scaling. Three fifths
// of its time, most of that for a shorter chain.
VAEFAST_FN void std_and_kl_normal(float logvar, float& std, float& kl) {
  const float h = 0.5f * logvar;
  uint32_t k;
  float a;
  const float low = exp_reduce(h, 127.0f, k, a);
  const float s = low + a, power = as_float(k << 23);
  std = (s + 1.0f) * power;
  kl = kl_from(power, s, low, a, h);
}

VAEFAST_FN void std_and_kl_normal(double logvar, double& std, double& kl) {
  const double h = 0.5 * logvar;
  uint64_t k;
  double a;
  const double low = exp_reduce(h, 1023.0, k, a);
  const double s = low + a, power = as_double(k << 52);
  std = (s + 1.0) * power;
  kl = kl_from(power, s, low, a, h);
}

// sqrt(1 / sigma): x / sigma is (x root) root, and that again divided so x / sigma^2. 1 / sigma^2
// itself may overflow where neither of them does. Its fourth power has four times its error.
template <class T>
VAEFAST_FN T whitening_root(T logvar) {
  return exp_precise(normal_exponent(T(-0.25) * logvar));
}

// x / sigma, cut off at the largest number: of two of them the difference is never NaN.
template <class T>
VAEFAST_FN T whitened(T x, T root) {
  return finite(x * root * root);
}

// (a^2 - b^2) / 2 for finite a and b, also where both squares overflow.
template <class T>
VAEFAST_FN T half_difference_of_squares(T a, T b) {
  return (a - b) * madd(T(0.5), a, T(0.5) * b);
}

// KL against N(prior_mu, e^prior_logvar); distance = mu - prior_mu, d = logvar - prior_logvar.
template <class T>
VAEFAST_FN T kl_prior(T distance, T logvar, T prior_logvar) {
  const T root = whitening_root(prior_logvar);
  const T far = distance * root * root;
  return T(0.5) * madd(far, far, expm1_minus_x(logvar - prior_logvar));
}

// Its derivatives in mu, and in logvar and prior_logvar times 2; that in prior_mu is -mu_slope.
template <class T>
VAEFAST_FN void kl_prior_slopes(T distance, T logvar, T prior_logvar, T& mu_slope, T& grown,
                                T& shrunk) {
  const T root = whitening_root(prior_logvar);
  const T far = distance * root * root;
  mu_slope = far * root * root;
  grown = expm1(logvar - prior_logvar);
  shrunk = -madd(far, far, grown);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
