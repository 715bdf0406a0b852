// Likelihoods of real-valued and unit-interval data: see likelihoods.h for what a functor is.
#pragma once

#include "special.h"

namespace vaefast {
namespace VAEFAST_ISA {

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

template <class T>
struct RealEdge;

template <>
struct RealEdge<float> {
  // From here on e^-2a is below half an ulp of 1, and the square of `root` overflows.
  static constexpr float cosh = 15.0f, root = 1e18f;
};

template <>
struct RealEdge<double> {
  static constexpr double cosh = 30.0, root = 1e150;
};

// log cosh(d) and tanh(d) from t = e^a - 1, a = |d|: cosh a - 1 = t^2 / (2 (1 + t)), so nothing
// cancels for small d; far out |d| - log 2.
template <class T>
VAEFAST_FN T log_cosh_tanh(T d, T& tangent) {
  const T a = abs(d);
  const bool far = a > RealEdge<T>::cosh;
  const T t = expm1(far ? RealEdge<T>::cosh : a);
  const T square = t * (t + T(2));
  const T size = square / (square + T(2));
  tangent = d < T(0) ? -size : size;
  const T near = log1p(t * t / (T(2) + T(2) * t));
  return far ? a - T(0.693147180559945309) : near;
}

// theta: loc; numbers: 1/b and the constant. p(x) = sech((x - loc)/b) / (pi b).
template <class T>
struct log_cosh_fixed {
  static constexpr int kParams = 1;
  T inverse, constant;
  explicit log_cosh_fixed(const double* numbers)
      : inverse(T(numbers[0])), constant(T(numbers[1])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    T slope;
    const T value = log_cosh_tanh((theta[0] - x) * inverse, slope);
    if constexpr (kGrad) grad[0] = slope * inverse;
    return value + constant;
  }
};

// theta: loc, log b.
template <class T>
struct log_cosh {
  static constexpr int kParams = 2;
  T constant;
  explicit log_cosh(const double* numbers) : constant(T(numbers[0])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T root = exp_finite(T(-0.5) * theta[1]);
    const T d = (theta[0] - x) * root * root;
    T slope;
    const T value = log_cosh_tanh(d, slope);
    if constexpr (kGrad) {
      grad[0] = slope * root * root;
      grad[1] = T(1) - d * slope;
    }
    return value + theta[1] + constant;
  }
};

// log x where `whole`, else log(1 + x), x >= 0: one polynomial for both.
template <class T>
VAEFAST_FN T log_or_log1p(bool whole, T x) {
  // A denormal number's exponent is not where it is looked for.
  const T lift = sizeof(T) == 4 ? T(0x1p64) : T(0x1p512);
  const bool tiny = whole & (x < T(1) / lift);
  const T given = tiny ? x * lift : x;
  const T y = whole ? given : T(1) + given;
  const auto e = exponent_field(y);
  T quarter_scale;
  if constexpr (sizeof(T) == 4) {
    quarter_scale = as_float(0x40800000u - e);
  } else {
    quarter_scale = as_double(0x4010000000000000ull - e);
  }
  const T rest = madd(T(0.25), quarter_scale, T(-1));
  T f;
  if constexpr (sizeof(T) == 4) {
    f = as_float(to_bits(given) - e);
  } else {
    f = as_double(to_bits(given) - e);
  }
  f += whole ? T(-1) : rest;
  const T k = exponent_value(e) - (tiny ? (sizeof(T) == 4 ? T(64) : T(512)) : T(0));
  return log_edges(y, log_join(k, log1p_core(f)));
}

// log1p(r^2) and r / (1 + r^2) where r^2 may overflow.
template <class T>
VAEFAST_FN T log1p_square(T r, T& pull) {
  const T a = abs(r);
  const bool far = a > RealEdge<T>::root;
  pull = far ? T(1) / r : r / madd(r, r, T(1));
  return (far ? T(2) : T(1)) * log1p(far ? a : r * r);
}

// theta: loc; numbers: 1/(b sqrt(df)), (df + 1)/2 and the constant.
template <class T>
struct student_t_fixed {
  static constexpr int kParams = 1;
  T inverse, half, constant;
  explicit student_t_fixed(const double* numbers)
      : inverse(T(numbers[0])), half(T(numbers[1])), constant(T(numbers[2])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    T pull;
    const T value = half * log1p_square((theta[0] - x) * inverse, pull);
    if constexpr (kGrad) grad[0] = T(2) * half * pull * inverse;
    return value + constant;
  }
};

// theta: loc, log b; numbers: 1/sqrt(df), (df + 1)/2 and the constant.
// Far out r may overflow where log(1 + r^2) = 2 (log |d| - s - log(df)/2) does not.
template <class T>
struct student_t {
  static constexpr int kParams = 2;
  T root, log_root, half, constant;
  explicit student_t(const double* numbers)
      : root(T(numbers[0])),
        log_root(T(log(numbers[0]))),
        half(T(numbers[1])),
        constant(T(numbers[2])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T s = theta[1], d = theta[0] - x;
    const T shrink = exp_finite(T(-0.5) * s);
    const T r = d * shrink * shrink * root;
    const bool far = abs(r) > RealEdge<T>::root;
    const T square = r * r;
    const T found = log_or_log1p(far, far ? abs(d) : square);
    const T value = half * (far ? T(2) * ((found - s) + log_root) : found);
    if constexpr (kGrad) {
      const T pull = (far ? T(1) : r) / (far ? d : square + T(1));
      const T by = far ? T(1) : shrink;
      grad[0] = T(2) * half * pull * by * by * (far ? T(1) : root);
      grad[1] = T(1) - T(2) * half * (far ? T(1) : r * pull);
    }
    return value + s + constant;
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
