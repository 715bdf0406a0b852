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
  static constexpr float largest_ratio = 1e30f, least = 1e-37f, far = 80.0f;
};

template <>
struct CountEdge<double> {
  static constexpr double largest_ratio = 1e290, least = 1e-307, far = 690.0;
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
  const T s = ratio(b, T(2) + b);
  const T z = s * s;
  return s * madd(-z, atanh_rest(z), b);
}

// log Gamma(x + 1) - (x log x - x), x >= 0, w = 1/x. Below 1 log Gamma(x + 1) is x (x - 1) G(x -
// 1), with G as in lgamma_mid, from there to 3 (x - 1) (x - 2) G(x - 2) + log x: what is left has
// no term that is larger.
template <class T>
VAEFAST_FN T factorial_rest(T x, T w, T log_x) {
  const T below = x < T(1) ? x : x - T(1);
  const T t = below - T(1);
  const T low = madd(below, madd(t, lgamma_mid(t), -log_x), x);
  const T high = madd(w, lgamma_tail(w * w), madd(T(0.5), log_x, kHalfLog2Pi<T>));
  const T rest = x >= T(3) ? high : low;
  return x > T(0) ? rest : T(0);
}

// log Gamma(x + 1), 0 <= x < 3, <= 2e-7: its zeros at 0 and 1 as factors, around 3/2.
VAEFAST_FN float log_factorial_low(float x) {
  const float q =
      horner(x - 1.5f, 3.795771897e-01f, -7.466448098e-02f, 1.990669034e-02f, -6.012056489e-03f,
             1.937130932e-03f, -6.709422451e-04f, 2.543424489e-04f, -7.478637417e-05f,
             7.821465260e-06f, -9.377119568e-06f, 1.126196184e-05f, -3.164650479e-06f);
  return x * (x - 1.0f) * q;
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

#if VAEFAST_DEVICE
  // Below 3 there is nothing that cancels. From there on e^r x is the rate.
  template <bool kGrad>
  VAEFAST_MEMBER float quick(float x, const float* theta, float* grad, bool& odd) const {
    const float log_rate = theta[0];
    odd = !((x >= 0.0f) & (x < 1e9f) & (abs(log_rate) < 40.0f));
    const float rate = exp_normal(log_rate);
    if constexpr (kGrad) grad[0] = rate - x;
    const float bare = madd(-x, log_rate, rate);
    const float low = bare + log_factorial_low(x);

    const float log_x = device::log(x);
    const float r = log_rate - log_x;
    const float near = x * expm1_minus_x_near(r);
    const float far = (rate - x) - x * r;
    const float w = device::rcp(x);
    const float rest = madd(0.5f, log_x, madd(w, lgamma_tail(w * w), kHalfLog2Pi<float>));
    const float high = (abs(r - 0.25f) < 1.25f ? near : far) + rest;
    return whole != 0.0f ? (x < 3.0f ? low : high) : bare;
  }
#endif
};

#if VAEFAST_DEVICE
template <>
constexpr bool kHasQuick<poisson<float>> = true;
#endif

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

// log(1 + y) with 1 + y known, which cancels nothing.
VAEFAST_FN float log1p_known(float y, float whole) {
  const uint32_t e = exponent_field(whole);
  const float f = e == 0 ? y : as_float(to_bits(whole) - e) - 1.0f;
  return log_edges(whole, log_join(exponent_value(e), log1p_core(f)));
}

VAEFAST_FN double log1p_known(double y, double whole) {
  const uint64_t e = exponent_field(whole);
  const double f = e == 0 ? y : as_double(to_bits(whole) - e) - 1.0;
  return log_edges(whole, log_join(exponent_value(e), log1p_core(f)));
}

// The negative binomial's arithmetic for parameters of any size.
template <class T>
struct Exact {
  static constexpr bool kAnySize = true;

  VAEFAST_MEMBER static T inverse(T x) { return T(1) / x; }

  // log(1 + y); `rise` is what that leaves of y.
  VAEFAST_MEMBER static T log1p(T y, T whole, T& rise) {
    const T found = log1p_known(y, whole);
    rise = abs(y) < T(0.25) ? minus_log1p_near(y) : y - found;
    return found;
  }

  // log(1 + n w) + log(1 + spread)/2.
  VAEFAST_MEMBER static T grown(T n, T w, T spread) {
    return madd(T(0.5), log1p_positive(spread), log1p_ratio(n, w));
  }

  VAEFAST_MEMBER static T factorial(T x, bool none) {
    const T some = none ? T(1) : x;
    return factorial_rest(x, T(1) / some, log(some));
  }
};

#if VAEFAST_DEVICE
// The same by a GPU's special-function unit, for numbers between 1e-6 and 1e6.
struct Unit {
  static constexpr bool kAnySize = false;

  VAEFAST_MEMBER static float inverse(float x) { return device::rcp(x); }

  // The series is within 5e-8 between -0.38 and 0.62.
  VAEFAST_MEMBER static float log1p(float y, float whole, float& rise) {
    const bool near = abs(y - 0.12f) < 0.5f;
    const float close = minus_log1p_near(y), far = device::log_near(whole);
    rise = near ? close : y - far;
    return near ? y - close : far;
  }

  VAEFAST_MEMBER static float grown(float n, float w, float spread) {
    const float more = n * w, whole = 1.0f + more;
    const float y = madd(more, 1.0f + whole, spread * (whole * whole));
    const float far = madd(0.5f, device::lg2(1.0f + spread), device::lg2(whole)) * device::kLn2F;
    return y < 0.62f ? 0.5f * (y - minus_log1p_near(y)) : far;
  }

  VAEFAST_MEMBER static float factorial(float x, bool) {
    const float w = device::rcp(x), log_x = device::log_near(x);
    const float low = log_factorial_low(x) + madd(-x, log_x, x);
    const float high = madd(0.5f, log_x, madd(w, lgamma_tail(w * w), kHalfLog2Pi<float>));
    return x < 3.0f ? low : high;
  }
};
#endif

// The negative binomial's loss and derivatives: mean mu, dispersion theta, variance
// mu + mu^2/theta.
//
// Its large parts are combined by Stirling's formula at u and v: theta and x + theta, or where
// theta is below 3 both three further on, by Gamma's recurrence. With m = mu + theta the loss is
//   x log1p(c) - theta log1p(b) + log(v/u)/2 + log G + S(u) - S(v) + log(x! / (x/e)^x),
//   c = x m / (mu v) - 1, b = theta v / (u m) - 1, G = g(x + theta) / g(theta),
//   g(z) = z (z + 1) (z + 2) / (z + 3)^3, or 1.
// All but the first two is made of x as a factor: where x is small nothing cancels.
template <class By, bool kGrad, Counts kCounts, class T>
VAEFAST_FN T negative_binomial_by(T x, T mu, T theta, T& grad_mu, T& grad_theta) {
  const bool none = is_zero<kCounts>(x);
  // Without a count all else is 0 times a number, where it is one, and v is u.
  const bool alone = By::kAnySize && none;
  const T sum = x + theta, mean = mu + theta;
  const T w_mean = By::inverse(mean);
  const bool low = theta < T(3);
  const T shift = low ? T(3) : T(0), u = theta + shift, v = sum + shift;
  const T w_mu = By::inverse(mu), w_u = By::inverse(u), w_v = By::inverse(v);
  const T d = x - mu;
  const T share = low ? theta * w_u : T(1), further = shift * w_u;
  // (theta d - shift mu) / u, of which b and c are made.
  const T e = madd(share, d, -further * mu);
  const T b = alone ? -mu * w_mean : e * w_mean;
  T y_b = b, y_c = (e * w_mu) * (u * w_v);
  T of_b = alone ? theta * w_mean : share * (v * w_mean), of_c = (x * w_mu) * (mean * w_v);
  bool small = false, large = false;
  if constexpr (By::kAnySize) {
    // Quotients that may be no numbers of the type are scaled, by 2^128 and 2^-64.
    small = of_b * CountEdge<T>::largest_ratio < T(1);
    large = of_c > CountEdge<T>::largest_ratio;
    of_b = small ? (share * T(0x1p64)) * ((v * w_mean) * T(0x1p64)) : of_b;
    of_c = large ? ((x * T(0x1p-64)) * w_mu) * (mean * w_v) : of_c;
    // Of so small a count its logarithm does not matter, but for being one.
    of_c = of_c < CountEdge<T>::least ? CountEdge<T>::least : of_c;
    y_b = small ? of_b - T(1) : b;
    y_c = large ? of_c - T(1) : y_c;
  }
  T rise, unused;
  T log_b = By::log1p(y_b, of_b, rise), log_c = By::log1p(y_c, of_c, unused);
  if constexpr (By::kAnySize) {
    log_b -= small ? T(88.7228391116729996) : T(0);
    log_c += large ? T(44.3614195558364998) : T(0);
    rise = small ? b - log_b : rise;
  }
  const T deviance = madd(x, none ? T(0) : log_c, -theta * log_b);

  const T scaled = x * w_v, apart = scaled * w_u;
  T psi;
  const T stirling = tails_apart(w_u, w_v, apart, psi);
  // With w = 1/(z + 3), g is (1 - w) (1 - 2 w) (1 - 3 w).
  const T both = w_u + w_v;
  const T slope = madd(T(6), madd(both, both, -w_u * w_v), madd(T(-11), both, T(6)));
  const T first = theta + T(1), second = theta + T(2), pair = first * second;
  const T w_all = By::inverse(theta * pair);
  const T growth = low ? (scaled * slope) * (u * u) : T(0);
  const T binomial = By::grown(growth, w_all, x * w_u) + stirling + By::factorial(x, none);
  if constexpr (kGrad) {
    grad_mu = theta * w_mean * (alone ? T(1) : -d * w_mu);
    const T steps =
        madd(x * By::inverse(sum), w_all * pair,
             x * (By::inverse(first * (sum + T(1))) + By::inverse(second * (sum + T(2)))));
    const T more = madd(T(0.5), apart, low ? steps : T(0)) + psi;
    grad_theta = alone ? rise : rise + madd(further, x * w_mean, -more);
  }
  return deviance + (none ? T(0) : binomial);
}

template <bool kGrad, Counts kCounts, class T>
VAEFAST_FN T negative_binomial_nll(T x, T mu, T theta, T& grad_mu, T& grad_theta) {
  const T value = negative_binomial_by<Exact<T>, kGrad, kCounts>(x, mu, theta, grad_mu, grad_theta);
  return x < T(0) ? T(kNan) : value;
}

#if VAEFAST_DEVICE
// negative_binomial_nll for counts to 1e6, and means and dispersions between 1e-6 and 1e6.
template <bool kGrad>
VAEFAST_FN float negative_binomial_quick(float x, float mu, float theta, float* grad, bool& odd) {
  odd = !((x >= 0.0f) & (x < 1e6f) & between(mu, 1e-6f, 1e6f) & between(theta, 1e-6f, 1e6f));
  float none;
  return negative_binomial_by<Unit, kGrad, Counts::kAny>(x, mu, theta, kGrad ? grad[0] : none,
                                                         kGrad ? grad[1] : none);
}
#endif

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

#if VAEFAST_DEVICE
  template <bool kGrad>
  VAEFAST_MEMBER float quick(float x, const float* theta, float* grad, bool& odd) const {
    return negative_binomial_quick<kGrad>(x, theta[0] + eps, theta[1], grad, odd);
  }
#endif
};

#if VAEFAST_DEVICE
template <>
constexpr bool kHasQuick<negative_binomial<float>> = true;
#endif

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

#if VAEFAST_DEVICE
  template <bool kGrad>
  VAEFAST_MEMBER float quick(float x, const float* theta, float* grad, bool& odd) const {
    const float n = negative_binomial_quick<kGrad>(x, theta[0] + eps, theta[1], grad, odd);
    return outer<kGrad, Counts::kAny>(x, n, theta, grad);
  }
#endif

  // The loss, and what becomes of the derivatives.
  template <bool kGrad, Counts kCounts>
  VAEFAST_MEMBER static T outer(T x, T n, const T* theta, T* grad) {
    const T pi = theta[2];
    const bool zero = is_zero<kCounts>(x);
    const T e = exp_minus(abs(pi), CountEdge<T>::far);
    const T w = ratio(T(1), T(1) + e), less = e * w;
    const T drop = pi > T(0) ? T(1) - less : less;
    const T keep = pi > T(0) ? less : T(1) - less;

    const T fall = expm1_nonpositive(-n);
    const T joint = keep * fall;
    const bool direct = joint > T(-0.5);
    const T odds = pi + n;
    const T tail = exp_minus(abs(odds), CountEdge<T>::far);
    // Where it is not direct pi is at most 0, and softplus(pi) the logarithm of 1 + e.
    const T log_part = log1p_finite(direct ? joint : (tail - e) * w);
    const T higher = odds > T(0) ? pi : -n;
    const T at_zero = (direct ? T(0) : -higher) - log_part;
    if constexpr (kGrad) {
      const T lesser = ratio(tail, T(1) + tail);
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

#if VAEFAST_DEVICE
template <>
constexpr bool kHasQuick<zero_inflated_negative_binomial<float>> = true;
#endif

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
