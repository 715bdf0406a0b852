// Likelihoods of pixels of a few levels: see likelihoods.h for what a functor is.
#pragma once

#include "special.h"

namespace vaefast {
namespace VAEFAST_ISA {

template <class T>
struct PixelEdge;

template <>
struct PixelEdge<float> {
  // Adding it rounds to an integer; below `narrow` a bin's mass is proportional to its width.
  static constexpr float round = 12582912.0f, largest = 3.4028234e38f, narrow = 1e-20f;
};

template <>
struct PixelEdge<double> {
  static constexpr double round = 6755399441055744.0, largest = 1.7976931348623157e308,
                          narrow = 1e-200;
};

template <class T>
VAEFAST_FN T within(T x, T bound) {
  const T low = x < -bound ? -bound : x;
  return low > bound ? bound : low;
}

// The mass that a logistic gives to one bin: with u, l the standardised edges and w = u - l,
//   sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - e^-w),
// so -log of it is a sum of three positive terms, and nothing cancels at any scale. The first and
// the last bin reach to infinity and lack the terms of that side.
template <bool kGrad, class T>
VAEFAST_FN T logistic_bin_nll(T d, T half_bin, T log_bin, T log_scale, bool first, bool last,
                              T& grad_loc, T& grad_log_scale) {
  using E = PixelEdge<T>;
  const T inverse = within(exp(-log_scale), E::largest);
  const T upper = within((d + half_bin) * inverse, E::largest);
  const T lower = within((d - half_bin) * inverse, E::largest);
  const T width = within(T(2) * half_bin * inverse, E::largest);
  const bool inside = !(first || last);

  // softplus(-upper) and softplus(lower) with their derivatives from one exp each.
  const T eu = exp(-abs(upper)), el = exp(-abs(lower));
  const T qu = eu / (T(1) + eu), ql = el / (T(1) + el);
  const T over = log1p(eu) + (upper < T(0) ? -upper : T(0));
  const T under = log1p(el) + (lower > T(0) ? lower : T(0));

  // log(1 - e^-w): by log1p where e^-w is small, by expm1 where it is not; a bin far below the
  // scale by its width's logarithm, which is known even where w underflows.
  const T rise = -expm1(-width);
  const bool narrow = width < E::narrow;
  const T left_out = exp(-width);
  const T bin_mass = width > T(0.7) ? log1p(-left_out) : log(rise);
  const T mass = narrow ? log_bin - log_scale : bin_mass;
  if constexpr (kGrad) {
    const T beyond = upper > T(0) ? qu : T(1) - qu;  // sigmoid(-upper)
    const T before = lower > T(0) ? T(1) - ql : ql;  // sigmoid(lower)
    // sigmoid(-u) - sigmoid(l) as the product that does not cancel, its sign that of -(u + l).
    const T both = within(upper + lower, E::largest);
    const T fall = -expm1(-abs(both));
    const T right = (T(1) - beyond), left = (T(1) - before);
    const T product = both > T(0) ? -(right * before) : beyond * left;
    const T middle = product * fall;
    const T share = narrow ? T(1) : width * left_out / rise;
    grad_loc = inverse * (first ? beyond : last ? -before : middle);
    grad_log_scale =
        (last ? T(0) : upper * beyond) - (first ? T(0) : lower * before) + (inside ? share : T(0));
  }
  return (last ? T(0) : over) + (first ? T(0) : under) - (inside ? mass : T(0));
}

// theta: loc, log_scale; numbers: a, b (a pixel x is level a x + b), the level 0 and the width of
// a level in loc's units, and the last level. x is taken to the nearest level.
template <class T>
struct discretized_logistic {
  static constexpr int kParams = 2;
  T a, b, low, bin, top, half_bin, log_bin;
  explicit discretized_logistic(const double* numbers)
      : a(T(numbers[0])),
        b(T(numbers[1])),
        low(T(numbers[2])),
        bin(T(numbers[3])),
        top(T(numbers[4])),
        half_bin(T(0.5 * numbers[3])),
        log_bin(T(numbers[5])) {}

  template <bool kGrad>
  VAEFAST_MEMBER T nll(T x, const T* theta, T* grad) const {
    const T nearest = (madd(x, a, b) + PixelEdge<T>::round) - PixelEdge<T>::round;
    const T above = nearest < T(0) ? T(0) : nearest;
    // 0 x: an infinite pixel is no level, and gives NaN.
    const T level = madd(T(0), x, above > top ? top : above);
    const T d = madd(level, bin, low) - theta[0];
    T grad_loc = T(0), grad_log_scale = T(0);
    const T value = logistic_bin_nll<kGrad>(d, half_bin, log_bin, theta[1], level <= T(0),
                                            level >= top, grad_loc, grad_log_scale);
    if constexpr (kGrad) {
      grad[0] = grad_loc;
      grad[1] = grad_log_scale;
    }
    return value;
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
