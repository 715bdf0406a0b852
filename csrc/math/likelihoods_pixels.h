// Likelihoods of pixels of a few levels: see likelihoods.h for what a functor is.
#pragma once

#include "bounded.h"
#include "likelihoods_base.h"

#define VAEFAST_PIXELS_LIKELIHOODS(X) X(discretized_logistic)

namespace vaefast {
namespace VAEFAST_ISA {

template <class T>
struct PixelEdge;

template <>
struct PixelEdge<float> {
  // Adding `round` rounds to an integer; below `narrow` a bin's mass is proportional to its width;
  // of two e^-far the product is still no denormal number, and beside 1 an e^-far is nothing.
  static constexpr float round = 12582912.0f, narrow = 1e-20f, far = 40.0f;
};

template <>
struct PixelEdge<double> {
  static constexpr double round = 6755399441055744.0, narrow = 1e-200, far = 345.0;
};

// e^-a, a >= 0, and 0 from `far` on: times an a of any size it is 0 too.
template <class T>
VAEFAST_FN T tail_of(T a) {
  const T e = exp_minus(a, PixelEdge<T>::far);
  return a > PixelEdge<T>::far ? T(0) : e;
}

// The mass that a logistic gives to one bin: with u, l the standardised edges and w = u - l,
//   sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - e^-w).
// With e_u = e^-|u| and e_l = e^-|l| its -log is
//   max(-u, 0) + max(l, 0) + log1p((e_u + e_l + e_u e_l + e^-w) / (1 - e^-w)):
// terms that are positive at any scale, and one logarithm. The first and the last bin reach to
// infinity and lack e_l and max(l, 0), or e_u and max(-u, 0), and e^-w.
// The conditions are numbers, 0 or 1: GCC 12 gives a loop up over a select by two of them.
template <bool kGrad, class T>
VAEFAST_FN T logistic_bin_nll(T d, T half_bin, T log_bin, T log_scale, bool first, bool last,
                              T& grad_loc, T& grad_log_scale) {
  using E = PixelEdge<T>;
  // e^-s is (root root), which may overflow where times a distance it does not.
  const T root = exp_finite(T(-0.5) * log_scale);
  const T upper = within((d + half_bin) * root * root, kLargest<T>);
  const T lower = within((d - half_bin) * root * root, kLargest<T>);
  const T whole = T(2) * half_bin * root * root;
  const T width = whole > kLargest<T> ? kLargest<T> : whole;
  const T has_upper = last ? T(0) : T(1), has_lower = first ? T(0) : T(1);
  const T inside = has_upper * has_lower;

  const T eu = tail_of(abs(upper)), el = tail_of(abs(lower));
  // e^-w is their product where the bin holds the location; 1 - rise would lose it there.
  const T rise = -expm1_nonpositive(-width);
  const T apart = T(1) - rise;
  const T across = upper > T(0) ? eu * el : apart;
  const T around = lower < T(0) ? across : apart;
  // A bin far below the scale: its width's logarithm is known even where w underflows.
  const bool narrow = width < E::narrow;
  const T per_rise = ratio(T(1), narrow ? T(1) : rise);
  const T over = has_upper * eu, under = has_lower * el;
  const T edges = over + under + over * under;
  const T part = inside == T(0) ? edges : (edges + (narrow ? T(0) : around)) * per_rise;
  const T far_over = has_upper * (upper < T(0) ? -upper : T(0));
  const T far_under = has_lower * (lower > T(0) ? lower : T(0));
  const T thin = inside * (narrow ? log_scale - log_bin : T(0));
  if constexpr (kGrad) {
    const T au = T(1) + eu, al = T(1) + el;
    const T r = ratio(T(1), au * al);
    const T qu = eu * al * r, ql = el * au * r;
    const T beyond = upper > T(0) ? qu : T(1) - qu;  // sigmoid(-upper)
    const T before = lower > T(0) ? T(1) - ql : ql;  // sigmoid(lower)
    // sigmoid(-u) - sigmoid(l) as the product that does not cancel, its sign that of -(u + l).
    const T both = upper + lower;
    const T fall = -expm1_nonpositive(-abs(both));
    const T falling = (beyond - T(1)) * before, rising = beyond * (T(1) - before);
    const T middle = (both > T(0) ? falling : rising) * fall;
    const T share = narrow ? T(1) : width * around * per_rise;
    const T edge = has_upper * beyond - has_lower * before;
    grad_loc = (inside == T(0) ? edge : middle) * root * root;
    grad_log_scale = has_upper * upper * beyond - has_lower * lower * before + inside * share;
  }
  return (far_over + far_under) + (log1p_positive(part) + thin);
}

// The same for edges that are not further off than kDistant, and a bin that is not narrow: the
// first and the last bin's missing edges are there, e^-kDistant is 0, and no step can overflow.
constexpr float kDistant = 1e5f;

template <bool kGrad>
VAEFAST_FN float logistic_bin_quick(float d, float half_bin, float log_scale, bool first, bool last,
                                    float& grad_loc, float& grad_log_scale, bool& odd) {
  constexpr float far = PixelEdge<float>::far;
  const float scale = exp_finite(-log_scale);
  const float upper = last ? kDistant : (d + half_bin) * scale;
  const float lower = first ? -kDistant : (d - half_bin) * scale;
  const float width = first | last ? kDistant : 2.0f * half_bin * scale;
  odd = !((abs(upper) <= kDistant) & (abs(lower) <= kDistant) & (width > 1e-12f));

  const float eu = exp_minus(abs(upper), far), el = exp_minus(abs(lower), far);
  const float fallen = width > far ? -far : -width;
  const float rise = -expm1_normal(fallen), apart = exp_normal(fallen);
  const float across = upper > 0.0f ? eu * el : apart;
  const float around = lower < 0.0f ? across : apart;
  const float per_rise = ratio(1.0f, rise);
  const float part = (madd(eu, el, eu + el) + around) * per_rise;
  const float beside = (upper < 0.0f ? -upper : 0.0f) + (lower > 0.0f ? lower : 0.0f);
  if constexpr (kGrad) {
    const float au = 1.0f + eu, al = 1.0f + el;
    const float r = ratio(1.0f, au * al);
    const float qu = eu * al * r, ql = el * au * r;
    const float beyond = upper > 0.0f ? qu : 1.0f - qu;
    const float before = lower > 0.0f ? 1.0f - ql : ql;
    const float both = upper + lower;
    const float span = abs(both) > far ? -far : -abs(both);
    const float fall = -expm1_normal(span) * scale;
    const float falling = (beyond - 1.0f) * before, rising = beyond * (1.0f - before);
    grad_loc = (both > 0.0f ? falling : rising) * fall;
    grad_log_scale = madd(upper, beyond, madd(-lower, before, width * around * per_rise));
  }
  return beside + log1p_positive(part);
}

// The level of a pixel x, the nearest of 0 to top to a x + b. An infinite pixel is none, and gives
// NaN, by the 0 x.
template <class T>
VAEFAST_FN T level_of(T x, T a, T b, T top) {
  const T nearest = (madd(x, a, b) + PixelEdge<T>::round) - PixelEdge<T>::round;
  const T above = nearest < T(0) ? T(0) : nearest;
  return madd(T(0), x, above > top ? top : above);
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
    const T level = level_of(x, a, b, top);
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

  template <bool kGrad>
  VAEFAST_MEMBER T quick(T x, const T* theta, T* grad, bool& odd) const {
    const T level = level_of(x, a, b, top);
    const T d = madd(level, bin, low) - theta[0];
    return logistic_bin_quick<kGrad>(d, half_bin, theta[1], level <= T(0), level >= top, grad[0],
                                     grad[1], odd);
  }
};

template <>
constexpr bool kHasQuick<discretized_logistic<float>> = true;

}  // namespace VAEFAST_ISA
}  // namespace vaefast
