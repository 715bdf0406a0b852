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
  const T s = ratio(b, T(2) + b);
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
    const bool zero = x == T(0);
    const T log_x = log(zero ? T(1) : x);
    const T rest = factorial_rest(x, T(1) / x, log_x);
    const T deviance = x * expm1_minus_x(theta[0] - log_x);
    const T bare = zero ? rate : rate - x * theta[0];
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
    const bool zero = x == T(0);
    if constexpr (kGrad) grad[0] = zero ? T(1) : (rate - x) / rate;
    const T log_x = log(x);
    const T w = T(1) / (zero ? T(1) : x);
    const T b = (rate - x) * w;
    const bool above = x > rate;
    const T ratio = log1p_ratio(abs(rate - x), above ? T(1) / rate : w);
    const T far = above ? b + ratio : b - ratio;
    const T excess = abs(b) < T(0.25) ? minus_log1p_near(b) : far;
    const T full = madd(x, excess, factorial_rest(x, w, log_x));
    const T bare = rate - x * log(rate);
    const T value = whole != T(0) ? full : bare;
    return x < T(0) ? kNan : zero ? rate : value;
  }
};

// The negative binomial's loss and derivatives: mean mu, dispersion theta, variance
// mu + mu^2/theta. With lo, hi the lesser and the greater of x and mu, and d = hi - lo,
//   nll = +-(x log(1 + d/lo theta/(hi + theta)) - theta log(1 + d/(lo + theta)))   [+: x > mu]
//       + log(1 + x/theta)/2 + S(theta) - S(x + theta) + log(x! / (x/e)^x).
template <bool kGrad, Counts kCounts, class T>
VAEFAST_FN T negative_binomial_nll(T x, T mu, T theta, T& grad_mu, T& grad_theta) {
  const bool zero = is_zero<kCounts>(x);
  const bool above = x > mu;
  const T d = abs(x - mu);
  const T sum = x + theta, mean = mu + theta;
  // Every ratio below is a product with one of these.
  const T w_x = T(1) / (zero ? T(1) : x), w_mu = T(1) / mu, w_theta = T(1) / theta;
  const T w_sum = T(1) / sum, w_mean = T(1) / mean;
  const T share = theta * (above ? w_sum : w_mean);
  const T first = zero ? T(0) : x * log1p_ratio(d * share, above ? w_mu : w_x);
  const T ratio = log1p_ratio(d, above ? w_mean : w_sum);
  const T deviance = first - theta * ratio;

  const T log_x = log(zero ? T(1) : x), log_theta = log(theta);
  const T spread = x * w_theta;
  const bool wide = spread > CountEdge<T>::largest_ratio;
  const T log_spread = wide ? log_x - log_theta : log1p(spread);
  T psi_theta, psi_sum;
  const T rest = stirling_rest<kGrad>(theta, w_theta, log_theta, psi_theta) -
                 stirling_rest<kGrad>(sum, w_sum, log_theta + log_spread, psi_sum);
  const T binomial = madd(T(0.5), log_spread, rest) + factorial_rest(x, w_x, log_x);
  if constexpr (kGrad) {
    grad_mu = theta * w_mean * (zero ? T(1) : (mu - x) * w_mu);
    const T b = (x - mu) * w_mean;
    // b - log1p(b), by the logarithm that is known where nothing cancels.
    const bool near = abs(b) < T(0.25);
    const T known = b - (above ? ratio : -ratio);
    const T rise = near ? minus_log1p_near(b) : known;
    const T step = T(0.5) * spread * w_sum;
    grad_theta = zero ? rise : rise - (step + (psi_sum - psi_theta));
  }
  const T value = (above ? deviance : -deviance) + (zero ? T(0) : binomial);
  return x < T(0) ? T(kNan) : value;
}

#if VAEFAST_DEVICE
// S(z) and P(z) as above for a GPU, z = zs - 3 or zs, zs >= 3: what the recurrence of Gamma makes
// of Stirling's series at zs,
//   S(z) = S(zs) + (z - 1/2) log(zs/z) + log(zs^3 / p) - 3,   p = z (z + 1) (z + 2),
//   P(z) = P(zs) + log(zs/z) + (1/z - 1/zs)/2 - p'/p.
// w = 1/z.
template <bool kGrad>
VAEFAST_FN float stirling_quick(float z, float w, float& psi) {
  const bool low = z < 3.0f;
  const float up = low ? z + 3.0f : z;
  const float w_up = device::rcp(up), square = w_up * w_up;
  const float apart = device::lg2(up * w);
  const float per_p = device::rcp(madd(z, z, z) * (z + 2.0f));
  const float product = device::lg2(up * up * (up * per_p));
  const float more = madd(device::kLn2F, madd(z - 0.5f, apart, product), -3.0f);
  if constexpr (kGrad) {
    const float slope = madd(z, madd(z, 3.0f, 6.0f), 2.0f) * per_p;
    const float shift = madd(device::kLn2F, apart, madd(0.5f, w - w_up, -slope));
    psi = madd(-square, digamma_tail(square), low ? shift : 0.0f);
  }
  return madd(w_up, lgamma_tail(square), low ? more : 0.0f);
}

// log Gamma(x + 1) - (x log x - x) in the same way, x > 0, w = 1/x.
VAEFAST_FN float factorial_quick(float x, float w) {
  const bool low = x < 3.0f;
  const float up = low ? x + 3.0f : x;
  const float w_up = device::rcp(up);
  const float per_p = device::rcp((x + 1.0f) * (x + 2.0f) * (x + 3.0f));
  const float product = madd(x, device::lg2(up * w), device::lg2(up * up * (up * per_p)));
  const float rest = madd(w_up, lgamma_tail(w_up * w_up), kHalfLog2Pi<float>);
  return madd(device::kLn2F, madd(0.5f, device::lg2(up), low ? product : 0.0f),
              rest - (low ? 3.0f : 0.0f));
}

// negative_binomial_nll for counts to 1e6, and means and dispersions between 1e-6 and 1e6.
template <bool kGrad>
VAEFAST_FN float negative_binomial_quick(float x, float mu, float theta, float* grad, bool& odd) {
  odd = !((x >= 0.0f) & (x < 1e6f) & between(mu, 1e-6f, 1e6f) & between(theta, 1e-6f, 1e6f));
  const bool zero = x == 0.0f, above = x > mu;
  const float rest = x - mu, d = abs(rest);
  const float sum = x + theta, mean = mu + theta;
  const float w_x = device::rcp(x), w_mu = device::rcp(mu), w_theta = device::rcp(theta);
  const float w_sum = device::rcp(sum), w_mean = device::rcp(mean);
  const float share = theta * (above ? w_sum : w_mean);
  const float first = log1p_positive(d * share * (above ? w_mu : w_x));
  const float second = log1p_positive(d * (above ? w_mean : w_sum));
  const float deviance = madd(zero ? 0.0f : x, zero ? 0.0f : first, -theta * second);

  float psi_theta, psi_sum;
  const float stirling =
      stirling_quick<kGrad>(theta, w_theta, psi_theta) - stirling_quick<kGrad>(sum, w_sum, psi_sum);
  const float log_spread = device::log_near(sum * w_theta);
  const float binomial = madd(0.5f, log_spread, stirling) + factorial_quick(x, w_x);
  if constexpr (kGrad) {
    grad[0] = -theta * w_mean * (rest * w_mu);
    const float b = rest * w_mean;
    const float known = b - (above ? second : -second);
    const float rise = abs(b) < 0.25f ? minus_log1p_near(b) : known;
    // For a count of 0 the sum is theta, and their difference 0.
    grad[1] = rise - madd(0.5f * x, w_theta * w_sum, psi_sum - psi_theta);
  }
  return (above ? deviance : -deviance) + (zero ? 0.0f : binomial);
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
