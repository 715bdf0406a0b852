// The elementwise likelihoods: each a functor of its form's name that gives -log p(x | theta) in
// nats and, where asked, its derivative in each parameter. CPU and CUDA compile the same functors.
//
// A functor has kParams, is made from the form's numbers, and is listed in VAEFAST_LIKELIHOODS.
#pragma once

#include "likelihoods_counts.h"
#include "likelihoods_pixels.h"
#include "likelihoods_real.h"
#include "special.h"

#define VAEFAST_LIKELIHOODS(X)       \
  X(bernoulli)                       \
  X(bernoulli_probs)                 \
  X(continuous_bernoulli)            \
  X(gaussian_fixed)                  \
  X(gaussian_scalar)                 \
  X(gaussian)                        \
  X(laplace_fixed)                   \
  X(laplace_scalar)                  \
  X(laplace)                         \
  X(log_cosh_fixed)                  \
  X(log_cosh)                        \
  X(student_t_fixed)                 \
  X(student_t)                       \
  X(poisson)                         \
  X(poisson_rate)                    \
  X(negative_binomial)               \
  X(zero_inflated_negative_binomial) \
  X(discretized_logistic)

namespace vaefast {
namespace VAEFAST_ISA {

template <class T>
VAEFAST_FN T sign(T x) {
  const T side = x > T(0) ? T(1) : T(-1);
  return x == T(0) ? T(0) : side * (x == x ? T(1) : x);
}

// theta: logits. softplus(l) - x l, split by the sign of l so that neither tail cancels.
template <class T>
struct bernoulli {
  static constexpr int kParams = 1;
  explicit bernoulli(const double*) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    return outer<kGrad, Counts::kAny>(x, inner<kGrad, Counts::kAny>(x, theta, grad), theta, grad);
  }

  // e^-|l|.
  template <bool, Counts>
  VAEFAST_MEMBER static T inner(T, const T* theta, T*) {
    return exp_nonpositive(-abs(theta[0]));
  }

  template <bool kGrad, Counts>
  VAEFAST_MEMBER static T outer(T x, T e, const T* theta, T* grad) {
    const T l = theta[0];
    const bool up = l > T(0);
    const T other = T(1) - x;
    if constexpr (kGrad) {
      const T tail = e / (T(1) + e);
      grad[0] = up ? other - tail : tail - x;
    }
    return log1p_unit(e) + (up ? other * l : -x * l);
  }
};

template <class T>
constexpr int kInnerGrads<bernoulli<T>> = 0;

// theta: probabilities, each logarithm at least -100, as torch's binary_cross_entropy, and for the
// derivative each of p and 1 - p at least 1e-12: (1 - x) / (1 - p) - x / p over one denominator.
template <class T>
struct bernoulli_probs {
  static constexpr int kParams = 1;
  explicit bernoulli_probs(const double*) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T p = theta[0];
    const T yes = log(p), no = log1p(-p);
    if constexpr (kGrad) {
      const T q = T(1) - p, least = T(1e-12);
      const T wide_p = p < least ? least : p, wide_q = q < least ? least : q;
      grad[0] = ((p - x) + ((wide_p - p) - (wide_q - q))) / (wide_p * wide_q);
    }
    return -(x * (yes < T(-100) ? T(-100) : yes) + (T(1) - x) * (no < T(-100) ? T(-100) : no));
  }
};

// theta: mean; numbers: 1 / (2 std^2) and the constant.
template <class T>
struct gaussian_fixed {
  static constexpr int kParams = 1;
  T half_precision, constant;
  explicit gaussian_fixed(const double* numbers)
      : half_precision(T(numbers[0])), constant(T(numbers[1])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T d = theta[0] - x;
    const T scaled = d * half_precision;
    if constexpr (kGrad) grad[0] = T(2) * scaled;
    return madd(d, scaled, constant);
  }
};

// theta: mean, std.
template <class T>
struct gaussian_scalar {
  static constexpr int kParams = 2;
  T constant;
  explicit gaussian_scalar(const double* numbers) : constant(T(numbers[0])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T inverse = T(1) / theta[1];
    const T d = (theta[0] - x) * inverse;
    if constexpr (kGrad) {
      const T pull = d * inverse;
      grad[0] = pull;
      grad[1] = madd(-d, pull, inverse);
    }
    return T(0.5) * d * d + log(theta[1]) + constant;
  }
};

// theta: mean, logvar.
template <class T>
struct gaussian {
  static constexpr int kParams = 2;
  T constant;
  explicit gaussian(const double* numbers) : constant(T(numbers[0])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T root = exp_finite(T(-0.25) * theta[1]);
    // (mean - x) / sigma: e^-v times its square may be 0 times infinity.
    const T d = (theta[0] - x) * root * root;
    const T square = d * d;
    if constexpr (kGrad) {
      grad[0] = d * root * root;
      grad[1] = T(0.5) - T(0.5) * square;
    }
    return T(0.5) * (square + theta[1]) + constant;
  }
};

// theta: loc; numbers: 1 / b and the constant.
template <class T>
struct laplace_fixed {
  static constexpr int kParams = 1;
  T inverse, constant;
  explicit laplace_fixed(const double* numbers) : inverse(T(numbers[0])), constant(T(numbers[1])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T d = theta[0] - x;
    if constexpr (kGrad) grad[0] = sign(d) * inverse;
    return madd(abs(d), inverse, constant);
  }
};

// theta: loc, b.
template <class T>
struct laplace_scalar {
  static constexpr int kParams = 2;
  T constant;
  explicit laplace_scalar(const double* numbers) : constant(T(numbers[0])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T inverse = T(1) / theta[1];
    const T d = theta[0] - x;
    const T scaled = abs(d) * inverse;
    if constexpr (kGrad) {
      grad[0] = sign(d) * inverse;
      grad[1] = (T(1) - scaled) * inverse;
    }
    return scaled + log(theta[1]) + constant;
  }
};

// theta: loc, log b.
template <class T>
struct laplace {
  static constexpr int kParams = 2;
  T constant;
  explicit laplace(const double* numbers) : constant(T(numbers[0])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T root = exp_finite(T(-0.5) * theta[1]);
    const T d = theta[0] - x;
    const T scaled = abs(d) * root * root;
    if constexpr (kGrad) {
      grad[0] = sign(d) * root * root;
      grad[1] = T(1) - scaled;
    }
    return scaled + theta[1] + constant;
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
