// The kernel of the maximum mean discrepancy: sum_s c_s / (c_s + d) of squared distances d, and its
// derivative.
#pragma once

#include "cpu/pairs.h"

namespace vaefast {
namespace VAEFAST_ISA {

// 1/x for 1e-37 < x < 1e37, 1 ulp, by Newton's method: AVX-512 divides 16 floats in 16 cycles, and
// this takes four. NaN stays.
VAEFAST_FN float reciprocal(float x) {
  float y = as_float(0x7ef311c7u - to_bits(x));
  y *= madd(-x, y, 2.0f);
  y *= madd(-x, y, 2.0f);
  return madd(madd(-x, y, 1.0f), y, y);
}

VAEFAST_FN double reciprocal(double x) { return 1.0 / x; }

// sum_s c_s / (c_s + d) over some scales as one fraction, and the derivative, less its sign, as
// another: one reciprocal for all of them. Every coefficient is positive, so nothing cancels.
template <class T>
struct Fraction {
  static constexpr int kMost = 8;
  int scales = 0;
  // top / bottom and steep / bottom^2, from the constant up.
  T top[kMost] = {}, bottom[kMost + 1] = {}, steep[2 * kMost - 1] = {};

  void set(const double* c, int n) {
    double q[kMost + 1] = {}, p[kMost + 1] = {1}, r[2 * kMost + 1] = {};
    for (int i = 0; i < n; ++i) {
      // r / p^2 + c / (c + d)^2, then q / p + c / (c + d).
      double square[2 * kMost + 1] = {};
      for (int j = 0; j <= i; ++j)
        for (int k = 0; k <= i; ++k) square[j + k] += p[j] * p[k];
      for (int j = 2 * i; j >= 0; --j)
        r[j] =
            c[i] * (c[i] * r[j] + (j > 0 ? 2 * r[j - 1] : 0) + square[j]) + (j > 1 ? r[j - 2] : 0);
      for (int j = i + 1; j >= 0; --j) {
        q[j] = c[i] * (q[j] + p[j]) + (j > 0 ? q[j - 1] : 0);
        p[j] = c[i] * p[j] + (j > 0 ? p[j - 1] : 0);
      }
    }
    scales = n;
    for (int j = 0; j < n; ++j) top[j] = static_cast<T>(q[j]);
    for (int j = 0; j <= n; ++j) bottom[j] = static_cast<T>(p[j]);
    for (int j = 0; j < 2 * n - 1; ++j) steep[j] = static_cast<T>(r[j]);
  }
};

template <int n, class T>
VAEFAST_FN T polynomial(const T* coefficients, T x) {
  if constexpr (n == 0) {
    return coefficients[0];
  } else {
    return madd(polynomial<n - 1>(coefficients + 1, x), x, coefficients[0]);
  }
}

// The first fraction finds the squared distances as they are, and leaves them in units of the
// largest scale. Beyond 1e9 of those the kernel is as good as 0, and the denominator would
// overflow.
template <int n, bool kFirst, class T>
void add_fraction(const Fraction<T>& f, T unit, T* squared, int64_t width, T* value, T* slope) {
#pragma omp simd
  for (int64_t l = 0; l < width; ++l) {
    const T raw = kFirst ? squared[l] * unit : squared[l];
    const T d = kFirst && raw > T(1e9) ? T(1e9) : raw;
    const T inverse = reciprocal(polynomial<n>(f.bottom, d));
    const T k = polynomial<n - 1>(f.top, d) * inverse;
    const T down = polynomial<2 * n - 2>(f.steep, d) * (inverse * inverse);
    if constexpr (kFirst) {
      squared[l] = d;
      value[l] = k;
      slope[l] = -down;
    } else {
      value[l] += k;
      slope[l] -= down;
    }
  }
}

template <bool kFirst, class T, int n = Fraction<T>::kMost>
void add_group(const Fraction<T>& f, T unit, T* squared, int64_t width, T* value, T* slope) {
  if (f.scales == n) {
    add_fraction<n, kFirst>(f, unit, squared, width, value, slope);
  } else if constexpr (n > 1) {
    add_group<kFirst, T, n - 1>(f, unit, squared, width, value, slope);
  }
}

// The kernel's scales, in units of the largest, of which `unit` is the inverse.
template <class T>
struct Scales {
  int groups = 0;
  Fraction<T> group[kMaxScales];
  T unit;

  // `near`: no squared distance is above 64 times the smallest scale, as between centred points.
  Scales(const MmdArgs& args, bool near) {
    // So many scales keep a denominator's square far from overflow, and their product in units of
    // the largest keeps it from underflow.
    const int most = near ? Fraction<T>::kMost : 2;
    double largest = 0;
    for (int s = 0; s < args.scales; ++s)
      largest = args.scale[s] > largest ? args.scale[s] : largest;
    unit = static_cast<T>(1 / largest);
    for (int s = 0; s < args.scales;) {
      double c[Fraction<T>::kMost], product = 1;
      int n = 0;
      while (n < most && s < args.scales) {
        c[n] = args.scale[s] / largest;
        product *= c[n];
        if (n > 0 && product < 1e-15) break;
        ++n;
        ++s;
      }
      group[groups++].set(c, n);
    }
  }

  // Sums over the scales of the kernel and of its derivative.
  void add(T* squared, int64_t width, T* value, T* slope) const {
    add_group<true>(group[0], unit, squared, width, value, slope);
    for (int g = 1; g < groups; ++g) add_group<false>(group[g], unit, squared, width, value, slope);
  }
};

template <class T>
void rbf(const MmdArgs& args, const T* squared, int64_t width, T* value, T* slope) {
  for (int64_t l = 0; l < width; ++l) value[l] = slope[l] = T(0);
  for (int s = 0; s < args.scales; ++s) {
    const T rate = static_cast<T>(-kLog2E / args.scale[s]);
    const T inverse = static_cast<T>(1 / args.scale[s]);
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      const T k = exp2(rate * squared[l]);
      value[l] += k;
      slope[l] = madd(-k, inverse, slope[l]);
    }
  }
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
