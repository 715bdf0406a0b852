// log Gamma and its derivative for x > 0, branch-free as in special.h.
//
// x < 1 is shifted up by one; [1, 3) is one polynomial around 2, with the zeros as factors so that
// the error stays relative; from 3 on Stirling's series, its tail a polynomial in 1/x^2. No product
// of shifts: it would lose the zeros at 1 and 2.
#pragma once

#include "special.h"

namespace vaefast {
namespace VAEFAST_ISA {

template <typename T>
struct GammaConstants;

template <>
struct GammaConstants<float> {
  static constexpr float ln2 = 6.93145752e-01f, ln2_low = 1.42860677e-06f;
  // log(2 pi)/2 - 1/2
  static constexpr float stirling = 4.189385332e-01f;
  // 2 minus the zero of digamma, in two parts
  static constexpr float zero = 5.383678675e-01f, zero_low = -1.243814994e-08f;
  static constexpr float infinity = kInfF, nan = kNanF;
};

template <>
struct GammaConstants<double> {
  static constexpr double ln2 = 6.93147180369123816e-01, ln2_low = 1.90821492927058770e-10;
  static constexpr double stirling = 4.18938533204672742e-01;
  static constexpr double zero = 5.38367855031637769e-01, zero_low = -9.54999542996569772e-17;
  static constexpr double infinity = kInf, nan = kNan;
};

// log Gamma(2 + t) / (t (1 + t)), -1 <= t < 1.
VAEFAST_FN float lgamma_mid(float t) {
  return horner(t, 4.227843285e-01f, -1.003172770e-01f, 3.296557814e-02f, -1.238490455e-02f,
                4.991841037e-03f, -2.102442551e-03f, 9.436302353e-04f, -4.247115285e-04f,
                1.313205285e-04f, -5.327644976e-05f, 7.791878306e-05f, -3.842234946e-05f);
}

VAEFAST_FN double lgamma_mid(double t) {
  return horner(t, 4.22784335098467190e-01, -1.00317301674349713e-01, 3.29650006211407581e-02,
                -1.23841921938045961e-02, 4.99864116551299031e-03, -2.10813082077024793e-03,
                9.15376904686241474e-04, -4.05707583130629230e-04, 1.82552836035095072e-04,
                -8.30936677840876827e-05, 3.81675768058843218e-05, -1.76687294923182783e-05,
                8.22778336444679254e-06, -3.82518051082792394e-06, 1.79222401646880950e-06,
                -8.99256357421252024e-07, 4.34287107191753960e-07, -1.27035225837436509e-07,
                5.14166418070623537e-08, -1.02288824377682390e-07, 5.48973011865743708e-08,
                2.25949176644607475e-08, -1.31245211612550864e-08, -1.14754475129081805e-08,
                5.90419460398891997e-09);
}

// digamma(2 + t) / (2 + t - x0), x0 its zero, -1 <= t < 1.
VAEFAST_FN float digamma_mid(float t) {
  return horner(t, 7.853075266e-01f, -2.607386112e-01f, 1.089999005e-01f, -4.956041649e-02f,
                2.345184051e-02f, -1.126576681e-02f, 5.513603333e-03f, -2.976751653e-03f,
                1.484399429e-03f, -3.113736166e-04f, 1.458659972e-04f, -4.139443336e-04f,
                2.100916463e-04f);
}

VAEFAST_FN double digamma_mid(double t) {
  return horner(t, 7.85307538604106181e-01, -2.60738954683005675e-01, 1.08999917017309975e-01,
                -4.95510329171168981e-02, 2.34473096153683981e-02, -1.13384325743992442e-02,
                5.55225378763362677e-03, -2.73957251651381611e-03, 1.35814650089717244e-03,
                -6.75316922712647632e-04, 3.36403746753538438e-04, -1.67793963548529360e-04,
                8.39006695067914164e-05, -4.19290442204736620e-05, 2.05532611509067108e-05,
                -1.02234079677516088e-05, 5.90399016046791669e-06, -3.02267223268438139e-06,
                4.21296843068827598e-07, -1.40652432007758253e-07, 1.08002429070956040e-06,
                -5.83955424001201218e-07, -3.11305617457357751e-07, 1.71631582510394106e-07,
                1.24040779030237631e-07, -6.45762301100763081e-08);
}

// The tails of Stirling's series from 3 on, z = 1/x^2 <= 1/9:
//   L = x (log Gamma(x) - ((x - 1/2) log x - x + log(2 pi)/2)),
//   D = x^2 (log x - 1/(2x) - digamma(x)).
// In double to 1e-17, absolute, as differences of them count too. `form` takes the coefficients.
template <class Form>
VAEFAST_FN auto lgamma_tail_by(float, const Form& form) {
  return form(8.333326876e-02f, -2.772793639e-03f, 6.971281255e-04f);
}

template <class Form>
VAEFAST_FN auto lgamma_tail_by(double, const Form& form) {
  return form(8.33333333333331344e-02, -2.77777777760738294e-03, 7.93650751179687483e-04,
              -5.95233158391167286e-04, 8.41427186480803732e-04, -1.90424135578263804e-03,
              6.04522768191371063e-03, -2.24803742568472249e-02, 7.74908236324769878e-02,
              -1.91880921817415284e-01, 2.35957962503850732e-01);
}

template <class Form>
VAEFAST_FN auto digamma_tail_by(float, const Form& form) {
  return form(8.333262056e-02f, -8.292097598e-03f, 3.267690772e-03f);
}

template <class Form>
VAEFAST_FN auto digamma_tail_by(double, const Form& form) {
  return form(8.33333333333204918e-02, -8.33333332622562470e-03, 3.96825259386162765e-03,
              -4.16653258081682229e-03, 7.56801678440715327e-03, -2.08035013580818509e-02,
              7.59009192980659025e-02, -3.05164572578943250e-01, 1.08221657957841688e+00,
              -2.67784067615031107e+00, 3.24524347311522909e+00);
}

// P(x) of the coefficients.
template <class T>
struct AtPoint {
  T x;
  template <class... C>
  VAEFAST_MEMBER T operator()(C... c) const {
    return horner(x, c...);
  }
};

// P(x), and (P(x) - P(y)) / (x - y), which cancels nothing.
template <class T>
struct Divided {
  T value, slope;
};

template <class T>
struct BetweenPoints {
  T x, y;

  VAEFAST_MEMBER Divided<T> operator()(T c0, T c1) const { return {madd(c1, x, c0), c1}; }

  template <class... C>
  VAEFAST_MEMBER Divided<T> operator()(T c0, T c1, C... c) const {
    const Divided<T> inner = (*this)(c1, c...);
    return {madd(inner.value, x, c0), madd(inner.slope, y, inner.value)};
  }
};

template <class T>
VAEFAST_FN T lgamma_tail(T z) {
  return lgamma_tail_by(z, AtPoint<T>{z});
}

template <class T>
VAEFAST_FN T digamma_tail(T z) {
  return digamma_tail_by(z, AtPoint<T>{z});
}

// Between u, v >= 3 by their inverses a, b, and apart = a - b: a L(a^2) - b L(b^2) is returned,
// `psi` is a^2 D(a^2) - b^2 D(b^2). `apart` is a factor of both.
template <class T>
VAEFAST_FN T tails_apart(T a, T b, T apart, T& psi) {
  const BetweenPoints<T> at{a * a, b * b};
  const Divided<T> l = lgamma_tail_by(a, at), d = digamma_tail_by(a, at);
  const T both = a + b;
  psi = apart * both * madd(at.y, d.slope, d.value);
  return apart * madd(b * both, l.slope, l.value);
}

// log Gamma(x), <= 4 ulp in float, 8 in double, and digamma(x), <= 4 ulp in float, 16 in double,
// for x > 0. Once this is inlined, a caller that uses one of the two pays for that one only.
template <typename T>
VAEFAST_FN void lgamma_digamma(T x, T& lg, T& dg) {
  using C = GammaConstants<T>;
  const bool small = x < T(1);
  const bool big = x >= T(3);
  T f;
  const T k = log_split(x, f);
  const T rest = madd(k, C::ln2_low, log1p_core(f));
  const T log_x = madd(k, C::ln2, rest);
  const T w = T(1) / x;
  const T z = w * w;

  // x - 1 or x - 2, exact where it cancels.
  const T t = x - (small ? T(1) : T(2));
  const T factor = t * (small ? x : x - T(1));
  const T lg_low = madd(factor, lgamma_mid(t), small ? -log_x : T(0));
  const T dg_low = madd((t + C::zero) + C::zero_low, digamma_mid(t), small ? -w : T(0));

  // (x - 1/2)(log x - 1) with the exact part of log x - 1 taken first.
  const T half = x - T(0.5);
  const T tail = madd(w, lgamma_tail(z), C::stirling);
  const T lg_high = madd(half, madd(k, C::ln2, T(-1)), madd(half, rest, tail));
  const T dg_high = madd(-z, digamma_tail(z), madd(T(-0.5), w, log_x));

  const T lg_any = big ? lg_high : lg_low;
  const T dg_any = big ? dg_high : dg_low;
  const T lg_edge = x == T(0) ? C::infinity : C::nan;
  const T dg_edge = x == T(0) ? -C::infinity : C::nan;
  const T lg_positive = x > T(0) ? lg_any : lg_edge;
  const T dg_positive = x > T(0) ? dg_any : dg_edge;
  lg = x < C::infinity ? lg_positive : x;
  dg = x < C::infinity ? dg_positive : x;
}

// log Gamma(x); inf at 0, NaN below.
template <typename T>
VAEFAST_FN T lgamma(T x) {
  T lg, dg;
  lgamma_digamma(x, lg, dg);
  return lg;
}

// digamma(x) = Gamma'(x)/Gamma(x); -inf at 0, NaN below.
template <typename T>
VAEFAST_FN T digamma(T x) {
  T lg, dg;
  lgamma_digamma(x, lg, dg);
  return dg;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
