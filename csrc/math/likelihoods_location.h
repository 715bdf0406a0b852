// Likelihoods of real values around a location: see likelihoods.h for what a functor is.
#pragma once

#include "likelihoods_base.h"

#define VAEFAST_LOCATION_LIKELIHOODS(X) \
  X(gaussian_fixed)                     \
  X(gaussian_scalar)                    \
  X(gaussian)                           \
  X(laplace_fixed)                      \
  X(laplace_scalar)                     \
  X(laplace)                            \
  X(log_cosh_fixed)                     \
  X(log_cosh)                           \
  X(student_t_fixed)                    \
  X(student_t)

namespace vaefast {
namespace VAEFAST_ISA {

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
      const T slope = d * inverse;
      grad[0] = slope;
      grad[1] = madd(-d, slope, inverse);
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

template <class T>
struct LocationEdge;

template <>
struct LocationEdge<float> {
  // From here on e^-2a is below half an ulp of 1, and the square of `root` overflows.
  static constexpr float cosh = 15.0f, root = 1e18f;
};

template <>
struct LocationEdge<double> {
  static constexpr double cosh = 30.0, root = 1e150;
};

// log cosh(d) and tanh(d) from t = e^a - 1, a = |d|: cosh a - 1 = t^2 / (2 (1 + t)), so nothing
// cancels for small d; far out |d| - log 2.
template <class T>
VAEFAST_FN T log_cosh_tanh(T d, T& tangent) {
  const T a = abs(d);
  const bool far = a > LocationEdge<T>::cosh;
  const T t = expm1(far ? LocationEdge<T>::cosh : a);
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

// log x where `whole`, for which x is no denormal, else log(1 + x), x >= 0: one polynomial for
// both.
template <class T>
VAEFAST_FN T log_or_log1p(bool whole, T x) {
  const T y = whole ? x : T(1) + x;
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
    f = as_float(to_bits(x) - e);
  } else {
    f = as_double(to_bits(x) - e);
  }
  f += whole ? T(-1) : rest;
  // y is a normal number, infinite or NaN.
  const T logarithm = log_join(exponent_value(e), log1p_core(f));
  return y < T(kInf) ? logarithm : y;
}

// log1p(r^2) and r / (1 + r^2) where r^2 may overflow.
template <class T>
VAEFAST_FN T log1p_square(T r, T& slope) {
  const T a = abs(r);
  const bool far = a > LocationEdge<T>::root;
  slope = far ? T(1) / r : r / madd(r, r, T(1));
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
    T slope;
    const T value = half * log1p_square((theta[0] - x) * inverse, slope);
    if constexpr (kGrad) grad[0] = T(2) * half * slope * inverse;
    return value + constant;
  }
};

// theta: loc, log b; numbers: 1/sqrt(df), (df + 1)/2 and the constant.
// Far out r may overflow where log(1 + r^2) = 2 (log |d| - s - log(df)/2) does not.
template <class T>
struct student_t {
  static constexpr int kParams = 2;
  T narrow, log_root, half, constant;
  explicit student_t(const double* numbers)
      : narrow(T(sqrt(numbers[0]))),
        log_root(T(log(numbers[0]))),
        half(T(numbers[1])),
        constant(T(numbers[2])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T s = theta[1], d = theta[0] - x;
    const T shrink = exp_finite(T(-0.5) * s) * narrow;
    const T r = d * shrink * shrink;
    const bool far = abs(r) > LocationEdge<T>::root;
    const T square = r * r;
    // A denormal |d| is taken as the smallest normal number.
    constexpr T least = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1022);
    const T a = abs(d) < least ? least : abs(d);
    const T found = log_or_log1p(far, far ? a : square);
    // All but the product is known before the logarithm is.
    const T rest = (far ? T(2) * half * (log_root - s) : T(0)) + (s + constant);
    if constexpr (kGrad) {
      const T slope = (far ? T(1) : r) / (far ? d : square + T(1));
      const T by = far ? T(1) : shrink;
      grad[0] = T(2) * half * slope * by * by;
      grad[1] = T(1) - T(2) * half * (far ? T(1) : r * slope);
    }
    return madd(far ? T(2) * half : half, found, rest);
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
