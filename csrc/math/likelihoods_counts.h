// Likelihoods of counts: see likelihoods.h for what a functor is.
//
// log Gamma never appears as a difference of two large values. With Stirling's formula taken out,
//   log Gamma(z + 1) = z log z - z + log(2 pi z)/2 + S(z),
// the large parts of every count likelihood combine by hand into its deviance, a sum of log1p of
// ratios, and what is left, S, is below 1/12 z: right for counts and dispersions of any size
// (Loader 2000, "Fast and accurate computation of binomial probabilities", for the Poisson case).
#pragma once

#include "bounded.h"
#include "gamma.h"
#include "likelihoods_base.h"

#define VAEFAST_COUNTS_LIKELIHOODS(X) \
  X(poisson)                          \
  X(poisson_rate)                     \
  X(negative_binomial)                \
  X(zero_inflated_negative_binomial)

namespace vaefast {
namespace VAEFAST_ISA {

// log(2 pi) / 2.
template <class T>
constexpr T kHalfLog2Pi = T(0.918938533204672742);

template <class T>
struct CountEdge;

template <>
struct CountEdge<float> {
  static constexpr float largest_ratio = 1e30f, far = 80.0f;
};

template <>
struct CountEdge<double> {
  static constexpr double largest_ratio = 1e290, far = 690.0;
};

template <Counts kCounts, class T>
VAEFAST_FN bool is_zero(T x) {
  return kCounts == Counts::kAny ? x == T(0) : kCounts == Counts::kZero;
}

// log(1 + n w), n >= 0, w = 1/d >= 0, also where n w overflows: there it is scaled by 2^-64, and
// the 1 does not matter.
template <class T>
VAEFAST_FN T log1p_ratio(T n, T w) {
  const T q = n * w;
  const bool large = q > CountEdge<T>::largest_ratio;
  const T scaled = (n * T(0x1p-32)) * (w * T(0x1p-32));
  return log1p(large ? scaled : q) + (large ? T(44.3614195558364998) : T(0));
}

// b - log(1 + b) near 0, -1/4 <= b < 0.4. With s = b/(2 + b), log(1 + b) = 2 atanh(s) and
// b - 2 s = b s: what is left is s (b - s^2 (2/3 + 2/5 s^2 + ...)).
VAEFAST_FN float atanh_rest(float z) {
  return horner(z, 6.666666655e-01f, 4.000012263e-01f, 2.855073084e-01f, 2.333291280e-01f);
}

VAEFAST_FN double atanh_rest(double z) {
  return horner(z, 6.66666666666666630e-01, 4.00000000000008904e-01, 2.85714285707954319e-01,
                2.22222223935666097e-01, 1.81817954423719841e-01, 1.53862504479401890e-01,
                1.32684856806544266e-01, 1.30896291606746235e-01);
}

template <class T>
VAEFAST_FN T minus_log1p_near(T b) {
  const T s = b / (T(2) + b);
  const T z = s * s;
  return s * madd(-z, atanh_rest(z), b);
}

// S(z), and P(z) = digamma(z) - log z + 1/(2 z), for z > 0 whose inverse and logarithm are known.
// From 3 on both are the tails of Stirling's series; below, what they are by definition.
template <bool kGrad, class T>
VAEFAST_FN T stirling_rest(T z, T w, T log_z, T& psi) {
  using C = GammaConstants<T>;
  const bool big = z >= T(3);
  const bool small = z < T(1);
  const T square = w * w;
  // log Gamma(z + 1) and digamma(z) around 2, as in lgamma_digamma.
  const T t = z - (small ? T(1) : T(2));
  const T lg = madd(t * (small ? z : z - T(1)), lgamma_mid(t), small ? T(0) : log_z);
  const T low = madd(-(z + T(0.5)), log_z, z) + (lg - kHalfLog2Pi<T>);
  if constexpr (kGrad) {
    const T dg =
        madd((t + C::zero) + C::zero_low, digamma_mid(t), small ? T(-0.5) * w : T(0.5) * w);
    psi = big ? -square * digamma_tail(square) : dg - log_z;
  }
  return big ? w * lgamma_tail(square) : low;
}

// log Gamma(x + 1) - (x log x - x), x >= 0, w = 1/x.
template <class T>
VAEFAST_FN T factorial_rest(T x, T w, T log_x) {
  T unused;
  const T rest = stirling_rest<false>(x, w, log_x, unused);
  return x > T(0) ? madd(T(0.5), log_x, kHalfLog2Pi<T>) + rest : T(0);
}

// theta: log rate; numbers: 1, or 0 to leave log x! out. With r = log(rate / x) the deviance is
// x (e^r - 1 - r), which keeps its digits where rate and count are large and close.
template <class T>
struct poisson {
  static constexpr int kParams = 1;
  T whole;
  explicit poisson(const double* numbers) : whole(T(numbers[0])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T rate = exp(theta[0]);
    if constexpr (kGrad) grad[0] = rate - x;
    const bool none = x == T(0);
    const T log_x = log(none ? T(1) : x);
    const T rest = factorial_rest(x, T(1) / x, log_x);
    const T deviance = x * expm1_minus_x(theta[0] - log_x);
    const T bare = none ? rate : rate - x * theta[0];
    // Below 1 the ratio rate / x may overflow, and there is nothing that cancels.
    const T small = madd(x, log_x - T(1), bare);
    const T full = (x >= T(1) ? deviance : small) + rest;
    const T value = whole != T(0) ? full : bare;
    return x < T(0) ? T(kNan) : value;
  }
};

// theta: rate; numbers: as above. The deviance is x (b - log1p(b)), b = (rate - x) / x.
template <class T>
struct poisson_rate {
  static constexpr int kParams = 1;
  T whole;
  explicit poisson_rate(const double* numbers) : whole(T(numbers[0])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T rate = theta[0];
    const bool none = x == T(0);
    if constexpr (kGrad) grad[0] = none ? T(1) : (rate - x) / rate;
    const T log_x = log(x);
    const T w = T(1) / (none ? T(1) : x);
    const T b = (rate - x) * w;
    const bool above = x > rate;
    const T ratio = log1p_ratio(abs(rate - x), above ? T(1) / rate : w);
    const T far = above ? b + ratio : b - ratio;
    const T excess = abs(b) < T(0.25) ? minus_log1p_near(b) : far;
    const T full = madd(x, excess, factorial_rest(x, w, log_x));
    const T bare = rate - x * log(rate);
    const T value = whole != T(0) ? full : bare;
    return x < T(0) ? kNan : none ? rate : value;
  }
};

// The negative binomial's loss and derivatives: mean mu, dispersion theta, variance
// mu + mu^2/theta. With lo, hi the lesser and the greater of x and mu, and d = hi - lo,
//   nll = +-(x log(1 + d/lo theta/(hi + theta)) - theta log(1 + d/(lo + theta)))   [+: x > mu]
//       + log(1 + x/theta)/2 + S(theta) - S(x + theta) + log(x! / (x/e)^x).
template <bool kGrad, Counts kCounts, class T>
VAEFAST_FN T negative_binomial_nll(T x, T mu, T theta, T& grad_mu, T& grad_theta) {
  const bool none = is_zero<kCounts>(x);
  const bool above = x > mu;
  const T d = abs(x - mu);
  const T sum = x + theta, mean = mu + theta;
  // Every ratio below is a product with one of these.
  const T w_x = T(1) / (none ? T(1) : x), w_mu = T(1) / mu, w_theta = T(1) / theta;
  const T w_sum = T(1) / sum, w_mean = T(1) / mean;
  const T share = theta * (above ? w_sum : w_mean);
  const T first = none ? T(0) : x * log1p_ratio(d * share, above ? w_mu : w_x);
  const T ratio = log1p_ratio(d, above ? w_mean : w_sum);
  const T deviance = first - theta * ratio;

  const T log_x = log(none ? T(1) : x), log_theta = log(theta);
  const T spread = x * w_theta;
  const bool wide = spread > CountEdge<T>::largest_ratio;
  const T log_spread = wide ? log_x - log_theta : log1p(spread);
  T psi_theta, psi_sum;
  const T rest = stirling_rest<kGrad>(theta, w_theta, log_theta, psi_theta) -
                 stirling_rest<kGrad>(sum, w_sum, log_theta + log_spread, psi_sum);
  const T binomial = madd(T(0.5), log_spread, rest) + factorial_rest(x, w_x, log_x);
  if constexpr (kGrad) {
    grad_mu = theta * w_mean * (none ? T(1) : (mu - x) * w_mu);
    const T b = (x - mu) * w_mean;
    // b - log1p(b), by the logarithm that is known where nothing cancels.
    const bool near = abs(b) < T(0.25);
    const T known = b - (above ? ratio : -ratio);
    const T rise = near ? minus_log1p_near(b) : known;
    const T step = T(0.5) * spread * w_sum;
    grad_theta = none ? rise : rise - (step + (psi_sum - psi_theta));
  }
  const T value = (above ? deviance : -deviance) + (none ? T(0) : binomial);
  return x < T(0) ? T(kNan) : value;
}

// theta: mu, theta, as scvi-tools has them; numbers: what is added to mu, which may underflow.
template <class T>
struct negative_binomial {
  static constexpr int kParams = 2;
  T eps;
  explicit negative_binomial(const double* numbers) : eps(T(numbers[0])) {}

  template <bool kGrad, Counts kCounts = Counts::kAny>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    T grad_mu = T(0), grad_theta = T(0);
    const T value =
        negative_binomial_nll<kGrad, kCounts>(x, theta[0] + eps, theta[1], grad_mu, grad_theta);
    if constexpr (kGrad) {
      grad[0] = grad_mu;
      grad[1] = grad_theta;
    }
    return value;
  }
};

// theta: mu, theta, dropout logits pi: a zero comes with probability sigmoid(pi) from outside;
// numbers: as above.
// With n the negative binomial's loss at 0, -log p(0) = -log1p(sigmoid(-pi) (e^-n - 1)), and
// where that logarithm's argument nears 0 softplus(pi) - logaddexp(pi, -n).
template <class T>
struct zero_inflated_negative_binomial {
  static constexpr int kParams = 3;
  T eps;
  explicit zero_inflated_negative_binomial(const double* numbers) : eps(T(numbers[0])) {}

  template <bool kGrad, Counts kCounts = Counts::kAny>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T n = inner<kGrad, kCounts>(x, theta, grad);
    return outer<kGrad, kCounts>(x, n, theta, grad);
  }

  // n and its derivatives.
  template <bool kGrad, Counts kCounts>
  VAEFAST_MEMBER T inner(T x, const T* theta, T* grad) const {
    T grad_mu = T(0), grad_theta = T(0);
    const T n =
        negative_binomial_nll<kGrad, kCounts>(x, theta[0] + eps, theta[1], grad_mu, grad_theta);
    if constexpr (kGrad) {
      grad[0] = grad_mu;
      grad[1] = grad_theta;
    }
    return n;
  }

  // The loss, and what becomes of the derivatives.
  template <bool kGrad, Counts kCounts>
  VAEFAST_MEMBER static T outer(T x, T n, const T* theta, T* grad) {
    const T pi = theta[2];
    const bool zero = is_zero<kCounts>(x);
    const T e = exp_minus(abs(pi), CountEdge<T>::far);
    const T w = T(1) / (T(1) + e), less = e * w;
    const T drop = pi > T(0) ? T(1) - less : less;
    const T keep = pi > T(0) ? less : T(1) - less;

    const T fall = expm1(-n);
    const T joint = keep * fall;
    const bool direct = joint > T(-0.5);
    const T odds = pi + n;
    const T tail = exp_minus(abs(odds), CountEdge<T>::far);
    // Where it is not direct pi is at most 0, and softplus(pi) the logarithm of 1 + e.
    const T log_part = log1p_finite(direct ? joint : (tail - e) * w);
    const T higher = odds > T(0) ? pi : -n;
    const T at_zero = (direct ? T(0) : -higher) - log_part;
    if constexpr (kGrad) {
      const T lesser = tail / (T(1) + tail);
      const T from_outside = odds > T(0) ? T(1) - lesser : lesser;
      const T weight = zero ? (odds > T(0) ? lesser : T(1) - lesser) : T(1);
      grad[0] *= weight;
      grad[1] *= weight;
      grad[2] = zero ? joint * from_outside : drop;
    }
    const T soft = log1p_unit(e) + (pi > T(0) ? pi : T(0));
    return zero ? at_zero : n + soft;
  }
};

template <class T>
constexpr int kInnerGrads<zero_inflated_negative_binomial<T>> = 2;

// The likelihoods whose zeros are worth doing by themselves. Not in double nor in the baseline,
// whose loops take GCC longest and are there to be exact and to run everywhere.
template <class F>
constexpr bool kSplitsZeros = false;
#if defined(__AVX2__)
template <>
constexpr bool kSplitsZeros<negative_binomial<float>> = true;
template <>
constexpr bool kSplitsZeros<zero_inflated_negative_binomial<float>> = true;
#endif

}  // namespace VAEFAST_ISA
}  // namespace vaefast
