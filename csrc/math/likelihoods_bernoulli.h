// Likelihoods of values in [0, 1]: see likelihoods.h for what a functor is.
#pragma once

#include "likelihoods_base.h"

#define VAEFAST_BERNOULLI_LIKELIHOODS(X) \
  X(bernoulli)                           \
  X(bernoulli_probs)                     \
  X(continuous_bernoulli)

namespace vaefast {
namespace VAEFAST_ISA {

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
      const T tail = ratio(e, T(1) + e);
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

// (log(sinh(l/2) / (l/2))) / l^2 and (coth(l/2)/2 - 1/l) / l, its derivative over l: even in l,
// polynomials in z = l^2 <= 4, within 1e-8 (float) and 1e-17 (double) of their value.
VAEFAST_FN float log_sinhc(float z) {
  return horner(z, 4.166666660e-02f, -3.472213281e-04f, 5.509659380e-06f, -1.020513412e-07f,
                1.702779137e-09f);
}

VAEFAST_FN double log_sinhc(double z) {
  return horner(z, 4.16666666666666644e-02, -3.47222222222221802e-04, 5.51146384479288574e-06,
                -1.03339947073145719e-07, 2.08767566499250533e-09, -4.40348780647980208e-11,
                9.55866197902615776e-13, -2.11715829227495165e-14, 4.72707918511873287e-16,
                -1.00344687531926120e-17, 1.52952172095271999e-19);
}

VAEFAST_FN float coth_rest(float z) {
  return horner(z, 8.333333251e-02f, -1.388878519e-03f, 3.304782282e-05f, -8.117004180e-07f,
                1.635687190e-08f);
}

VAEFAST_FN double coth_rest(double z) {
  return horner(z, 8.33333333333333287e-02, -1.38888888888887897e-03, 3.30687830686841443e-05,
                -8.26719576332252940e-07, 2.08767562084209540e-08, -5.28418096216318751e-10,
                1.33818602616930940e-11, -3.38645915529986605e-13, 8.48640760835869937e-15,
                -1.97919369286838517e-16, 3.21932869194723267e-18);
}

// theta: logits l. p(x) = l e^(x l) / (e^l - 1), whose normaliser is log(sinh(l/2) / (l/2)) + l/2.
// Near l = 0 (lambda = 1/2) that is 0/0: a series, which also keeps the digits of 1/2 - x.
template <class T>
struct continuous_bernoulli {
  static constexpr int kParams = 1;
  explicit continuous_bernoulli(const double*) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T l = theta[0];
    const bool up = l > T(0);
    const T a = abs(l);
    const bool near = a < T(2);
    const T z = near ? l * l : T(0);
    const T y = up ? T(1) - x : x;
    // Away from 0; the select keeps a division by 0 out of the branch that is not taken.
    const T far_a = near ? T(2) : a;
    const T fall = -expm1(-far_a);
    const T inverse = T(1) / far_a;
    if constexpr (kGrad) {
      const T far = y + ((T(1) - fall) / fall - inverse);
      grad[0] = near ? madd(l, coth_rest(z), T(0.5) - x) : (up ? far : -far);
    }
    const T inside = l * madd(l, log_sinhc(z), T(0.5) - x);
    return near ? inside : madd(y, a, log(fall * inverse));
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
