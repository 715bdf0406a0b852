// Elementary functions as branch-free polynomials: a plain loop over any of them vectorises.
//
// "<= 1.5 ulp" bounds the error on every instruction set, float and double alike unless both are
// given; csrc/tests/special_test.cpp measures it. NaN and infinities propagate, denormals are kept.
// Selects are ternaries over values already computed: GCC turns only those into blends everywhere.
#pragma once

#include "bits.h"
#include "device.h"

namespace vaefast {
namespace VAEFAST_ISA {

// ---- exp and expm1: x = n ln2 + r, |r| <= ln2/2

// (e^r - 1 - r) / r^2, |r| <= ln2/2, as close at 0 as at the ends.
VAEFAST_FN float exp_tail(float r) {
  return horner(r, 5.000000000e-01f, 1.666657776e-01f, 4.166644812e-02f, 8.363103494e-03f,
                1.393673825e-03f);
}

VAEFAST_FN double exp_tail(double r) {
  return horner(r, 5.00000000000000111e-01, 1.66666666666666741e-01, 4.16666666666231436e-02,
                8.33333333332261089e-03, 1.38888889175096692e-03, 1.98412698855208861e-04,
                2.48015209667764206e-05, 2.75572434385006367e-06, 2.76202104106284696e-07,
                2.51096624781315659e-08);
}

// e^r - 1 in two parts, `a` and the small returned one, and k, whose low bits hold n + bias.
// Adding 1.5 * 2^23 (2^52) rounds to an integer. ln2 is split so that n times its upper part, and
// with it `a`, is exact without FMA too: apart from the last sums nothing is rounded at r's scale.
VAEFAST_FN float exp_reduce(float x, float bias, uint32_t& k, float& a) {
  const float magic = 12582912.0f + bias;
  const float t = madd(x, 1.44269504e+00f, magic);
  const float n = t - magic;
  k = to_bits(t);
  a = madd(n, -0.693359375f, x);
  const float b = n * 2.12194440e-4f;
  const float r = a + b;
  return madd(r * r, exp_tail(r), b);
}

VAEFAST_FN double exp_reduce(double x, double bias, uint64_t& k, double& a) {
  const double magic = 6755399441055744.0 + bias;
  const double t = madd(x, 1.44269504088896341e+00, magic);
  const double n = t - magic;
  k = to_bits(t);
  a = madd(n, -6.93147180369123816e-01, x);
  const double b = n * -1.90821492927058770e-10;
  const double r = a + b;
  return madd(r * r, exp_tail(r), b);
}

// e^x, <= 1 ulp.
// 2^n is applied in two halves: one factor would overflow for n = 128 and has no denormals. The
// bias is twice that of the exponent, so that each half of k is a finished exponent field.
VAEFAST_FN float exp(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  uint32_t k;
  float a;
  const float p = (exp_reduce(x, 254.0f, k, a) + a) + 1.0f;
  const uint32_t half = k >> 1;
  return p * as_float(half << 23) * as_float((k - half) << 23);
}

VAEFAST_FN double exp(double x) {
  x = x < -746.0 ? -746.0 : x;
  x = x > 710.0 ? 710.0 : x;
  uint64_t k;
  double a;
  const double p = (exp_reduce(x, 2046.0, k, a) + a) + 1.0;
  const uint64_t half = k >> 1;
  return p * as_double(half << 52) * as_double((k - half) << 52);
}

// e^x, <= 1 ulp, for -87.3 <= x <= 88.3 (double: -708 to 709.3), where it is a normal number: no
// clamp, and one scaling fewer than exp.
VAEFAST_FN float exp_precise(float x) {
  uint32_t k;
  float a;
  const float p = (exp_reduce(x, 127.0f, k, a) + a) + 1.0f;
  return p * as_float(k << 23);
}

VAEFAST_FN double exp_precise(double x) {
  uint64_t k;
  double a;
  const double p = (exp_reduce(x, 1023.0, k, a) + a) + 1.0;
  return p * as_double(k << 52);
}

// The same, and on a GPU <= 8 ulp: see device.h.
VAEFAST_FN float exp_normal(float x) {
#if VAEFAST_DEVICE
  return device::exp(x);
#else
  return exp_precise(x);
#endif
}

VAEFAST_FN double exp_normal(double x) { return exp_precise(x); }

// x, or the nearest of those numbers.
VAEFAST_FN float normal_exponent(float x) {
  x = x < -87.3f ? -87.3f : x;
  return x > 88.3f ? 88.3f : x;
}

VAEFAST_FN double normal_exponent(double x) {
  x = x < -708.0 ? -708.0 : x;
  return x > 709.3 ? 709.3 : x;
}

// e^x of the nearest of those numbers: always a normal, finite number, and cheaper than exp. For
// x e^-s, which may be finite, or 0, where e^-s is not: as (x root) root, root = e^(-s/2), it is
// right for every normal x.
template <class T>
VAEFAST_FN T exp_finite(T x) {
  return exp_normal(normal_exponent(x));
}

// e^x for x <= 0, <= 1 ulp down to e^-87.3 = 1.2e-38 (double: e^-708 = 3e-308), that value below:
// for tails that are added to something.
VAEFAST_FN float exp_nonpositive(float x) { return exp_normal(x < -87.3f ? -87.3f : x); }
VAEFAST_FN double exp_nonpositive(double x) { return exp_normal(x < -708.0 ? -708.0 : x); }

// e^x - 1, <= 1.5 ulp, for a c that is x within -25 and 89 (double: -50 and 710).
// 2 (2^(n-1) (e^r - 1) + (2^(n-1) - 1/2)): exact for n = 0, and no overflow before the last step.
// Below 1e-20 the result is x, which also keeps denormals and -0.
VAEFAST_FN float expm1_within(float c, float x) {
  uint32_t k;
  float a;
  const float low = exp_reduce(c, 126.0f, k, a);
  const float s = as_float(k << 23);
  const float y = 2.0f * madd(low, s, madd(a, s, s - 0.5f));
  return abs(x) < 1e-20f ? x : y;
}

VAEFAST_FN double expm1_within(double c, double x) {
  uint64_t k;
  double a;
  const double low = exp_reduce(c, 1022.0, k, a);
  const double s = as_double(k << 52);
  const double y = 2.0 * madd(low, s, madd(a, s, s - 0.5));
  return abs(x) < 1e-20 ? x : y;
}

// e^x - 1, <= 1.5 ulp.
VAEFAST_FN float expm1(float x) {
  const float c = x < -25.0f ? -25.0f : x;
  return expm1_within(c > 89.0f ? 89.0f : c, x);
}

VAEFAST_FN double expm1(double x) {
  const double c = x < -50.0 ? -50.0 : x;
  return expm1_within(c > 710.0 ? 710.0 : c, x);
}

// e^x - 1 - x, <= 3 ulp at every scale; its square underflows where |x| is below 1e-19 (1e-154).
// The polynomial covers |x| < 1, where expm1(x) - x cancels. For x = inf the clamped x is
// subtracted, as inf - inf would be NaN.
VAEFAST_FN float expm1_minus_x(float x) {
  const float inner =
      x * x *
      horner(x, 5.000000000e-01f, 1.666666716e-01f, 4.166671634e-02f, 8.333298378e-03f,
             1.388583216e-03f, 1.984637638e-04f, 2.533254337e-05f, 2.758912160e-06f);
  const float outer = expm1(x) - (x > 89.0f ? 89.0f : x);
  return abs(x) < 1.0f ? inner : outer;
}

VAEFAST_FN double expm1_minus_x(double x) {
  const double inner =
      x * x *
      horner(x, 5.00000000000000000e-01, 1.66666666666666657e-01, 4.16666666666662758e-02,
             8.33333333333368710e-03, 1.38888888889650915e-03, 1.98412698409715501e-04,
             2.48015872520424200e-05, 2.75573193206771302e-06, 2.75573340307591933e-07,
             2.50520952276950248e-08, 2.08745217371953903e-09, 1.60595294525556806e-10,
             1.16364629717603511e-11, 7.68804916370415673e-13);
  const double outer = expm1(x) - (x > 710.0 ? 710.0 : x);
  return abs(x) < 1.0 ? inner : outer;
}

// e^x - 1 - x and e^x - 1 for |x| < 86, as e^x is known there: as above, and on a GPU <= 12 and 10
// ulp.
#if VAEFAST_DEVICE
// Of these the first between -1 and 3/2, where the difference would cancel.
VAEFAST_FN float expm1_minus_x_near(float x) {
  return x * x *
         horner(x, 5.000000000e-01f, 1.666665673e-01f, 4.166672751e-02f, 8.333992213e-03f,
                1.388638280e-03f, 1.972302562e-04f, 2.526107710e-05f, 3.395661679e-06f);
}

VAEFAST_FN float expm1_minus_x_normal(float x) {
  const float far = (device::exp(x) - 1.0f) - x;
  return abs(x - 0.25f) < 1.25f ? expm1_minus_x_near(x) : far;
}

VAEFAST_FN float expm1_normal(float x) {
  const float tail = horner(x, 4.999998212e-01f, 1.666613519e-01f, 4.166897014e-02f,
                            8.402393200e-03f, 1.387574594e-03f);
  const float far = device::exp(x) - 1.0f;
  return abs(x) < 0.5f ? madd(x * x, tail, x) : far;
}
#else
VAEFAST_FN float expm1_minus_x_normal(float x) { return expm1_minus_x(x); }
VAEFAST_FN float expm1_normal(float x) { return expm1(x); }
#endif

VAEFAST_FN double expm1_minus_x_normal(double x) { return expm1_minus_x(x); }
VAEFAST_FN double expm1_normal(double x) { return expm1(x); }

// e^x - 1 for x <= 0. On a GPU <= 10 ulp.
VAEFAST_FN float expm1_nonpositive(float x) {
#if VAEFAST_DEVICE
  return expm1_normal(x < -40.0f ? -40.0f : x);
#else
  return expm1_within(x < -25.0f ? -25.0f : x, x);
#endif
}

VAEFAST_FN double expm1_nonpositive(double x) { return expm1_within(x < -50.0 ? -50.0 : x, x); }

// ---- log and log1p: x = 2^k (1 + f), log x = k ln2 + log1p(f)

// log1p(f), -1/4 <= f < 1/2: f + f^2 Q(f).
VAEFAST_FN float log1p_core(float f) {
  const float q = horner(f, -5.000000000e-01f, 3.333345354e-01f, -2.500012517e-01f,
                         1.999073178e-01f, -1.664614528e-01f, 1.447778344e-01f, -1.317136288e-01f,
                         1.048773304e-01f, -4.524556920e-02f);
  return madd(f * f, q, f);
}

// log1p(f), sqrt(1/2) <= 1 + f < sqrt(2): 2 atanh(s), s = f/(2 + f), as FreeBSD's log arranges it.
// In double a division costs less than the ten more terms of a polynomial in f.
VAEFAST_FN double log1p_core(double f) {
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double r =
      z * horner(z, 6.66666666666673513e-01, 3.99999999994108069e-01, 2.85714287430689162e-01,
                 2.22221985150349854e-01, 1.81835669376492315e-01, 1.53139912287003216e-01,
                 1.47964871482598653e-01);
  const double h = 0.5 * f * f;
  return f - (h - s * (h + r));
}

VAEFAST_FN float log_join(float k, float log1p_f) {
  return madd(k, 6.93145752e-01f, madd(k, 1.42860677e-06f, log1p_f));
}

VAEFAST_FN double log_join(double k, double log1p_f) {
  return madd(k, 6.93147180369123816e-01, madd(k, 1.90821492927058770e-10, log1p_f));
}

// The exponent field of 2^k, k in place: subtract it from a number's bits to divide by 2^k.
VAEFAST_FN uint32_t exponent_field(float x) { return (to_bits(x) - 0x3f400000u) & 0xff800000u; }

VAEFAST_FN uint64_t exponent_field(double x) {
  return (to_bits(x) - 0x3fe6a09e667f3bcdull) & 0xfff0000000000000ull;
}

VAEFAST_FN float exponent_value(uint32_t e) {
  return static_cast<float>(static_cast<int32_t>(e)) * 1.1920929e-7f;
}

// Only AVX-512 converts int64 to double: the shifted field becomes the mantissa of 2^52 + k + 1024.
VAEFAST_FN double exponent_value(uint64_t e) {
  const uint64_t biased = (e + 0x4000000000000000ull) >> 52;
  return as_double(biased | 0x4330000000000000ull) - (4503599627370496.0 + 1024.0);
}

// k and f of a finite x > 0, denormals included.
VAEFAST_FN float log_split(float x, float& f) {
  const bool tiny = x < 1.17549435e-38f;
  const float y = tiny ? x * 8388608.0f : x;
  const uint32_t e = exponent_field(y);
  f = as_float(to_bits(y) - e) - 1.0f;
  return exponent_value(e) - (tiny ? 23.0f : 0.0f);
}

VAEFAST_FN double log_split(double x, double& f) {
  const bool tiny = x < 2.2250738585072014e-308;
  const double y = tiny ? x * 4503599627370496.0 : x;
  const uint64_t e = exponent_field(y);
  f = as_double(to_bits(y) - e) - 1.0;
  return exponent_value(e) - (tiny ? 52.0 : 0.0);
}

// The logarithm of y where y is 0, negative, inf or NaN, otherwise `r`.
VAEFAST_FN float log_edges(float y, float r) {
  const float edge = y == 0.0f ? -kInfF : kNanF;
  const float z = y > 0.0f ? r : edge;
  return y < kInfF ? z : y;
}

VAEFAST_FN double log_edges(double y, double r) {
  const double edge = y == 0.0 ? -kInf : kNan;
  const double z = y > 0.0 ? r : edge;
  return y < kInf ? z : y;
}

// log x, <= 1 ulp in float, 1.5 in double; -inf at 0, NaN below.
VAEFAST_FN float log(float x) {
  float f;
  const float k = log_split(x, f);
  return log_edges(x, log_join(k, log1p_core(f)));
}

VAEFAST_FN double log(double x) {
  double f;
  const double k = log_split(x, f);
  return log_edges(x, log_join(k, log1p_core(f)));
}

// log x for normal positive finite x: log without its edges.
VAEFAST_FN float log_normal(float x) {
  const uint32_t e = exponent_field(x);
  return log_join(exponent_value(e), log1p_core(as_float(to_bits(x) - e) - 1.0f));
}

VAEFAST_FN double log_normal(double x) {
  const uint64_t e = exponent_field(x);
  return log_join(exponent_value(e), log1p_core(as_double(to_bits(x) - e) - 1.0));
}

// log(1 + x), <= 1 ulp in float, 2 in double; -inf at -1, NaN below, and the sign of -0 is lost.
// k comes from 1 + x, but f = 2^-k x + (2^-k - 1), which does not lose the low bits of x. 2^-k is
// formed four times too large: it would be denormal for the largest x.
VAEFAST_FN float log1p(float x) {
  const float y = 1.0f + x;
  const uint32_t e = exponent_field(y);
  const float scale = as_float(0x40800000u - e);
  const float f = as_float(to_bits(x) - e) + madd(0.25f, scale, -1.0f);
  return log_edges(y, log_join(exponent_value(e), log1p_core(f)));
}

VAEFAST_FN double log1p(double x) {
  const double y = 1.0 + x;
  const uint64_t e = exponent_field(y);
  const double scale = as_double(0x4010000000000000ull - e);
  const double f = as_double(to_bits(x) - e) + madd(0.25, scale, -1.0);
  return log_edges(y, log_join(exponent_value(e), log1p_core(f)));
}

// log(1 + x) for -1 < x < 1e37, log1p without its edges; NaN stays. On a GPU <= 8.5 ulp.
VAEFAST_FN float log1p_finite(float x) {
#if VAEFAST_DEVICE
  const float far = device::log_near(1.0f + x);
  return abs(x - 0.125f) < 0.375f ? log1p_core(x) : far;
#else
  const uint32_t e = exponent_field(1.0f + x);
  const float scale = as_float(0x40800000u - e);
  const float f = as_float(to_bits(x) - e) + madd(0.25f, scale, -1.0f);
  return madd(0.0f, x, log_join(exponent_value(e), log1p_core(f)));
#endif
}

VAEFAST_FN double log1p_finite(double x) {
  const uint64_t e = exponent_field(1.0 + x);
  const double scale = as_double(0x4010000000000000ull - e);
  const double f = as_double(to_bits(x) - e) + madd(0.25, scale, -1.0);
  return madd(0.0, x, log_join(exponent_value(e), log1p_core(f)));
}

// log(1 + x), 0 <= x < 1e37: log1p without its edges; NaN stays. On a GPU <= 8.5 ulp.
VAEFAST_FN float log1p_positive(float x) {
#if VAEFAST_DEVICE
  return device::log1p(x);
#else
  return log1p_finite(x);
#endif
}

VAEFAST_FN double log1p_positive(double x) { return log1p_finite(x); }

// a / b where b and 1 / b are normal numbers. On a GPU <= 2.5 ulp.
VAEFAST_FN float ratio(float a, float b) {
#if VAEFAST_DEVICE
  return a * device::rcp(b);
#else
  return a / b;
#endif
}

VAEFAST_FN double ratio(double a, double b) { return a / b; }

// ---- softplus, sigmoid, tanh
// softplus and sigmoid of the same x share one exp after inlining.

// log1p(t), 0 <= t <= 1, where it needs no reduction.
VAEFAST_FN float log1p_unit(float t) {
  const float q = horner(t - 0.5f, -3.781395555e-01f, 1.792248785e-01f, -9.323204309e-02f,
                         5.108945444e-02f, -2.890299447e-02f, 1.665294543e-02f, -1.018407568e-02f,
                         6.942085456e-03f, -3.316225950e-03f);
  return madd(t * t, q, t);
}

VAEFAST_FN double log1p_unit(double t) {
  const double s = t / (2.0 + t);
  const double z = s * s;
  const double r =
      z * horner(z, 6.66666666666663077e-01, 4.00000000001566880e-01, 2.85714285478857577e-01,
                 2.22222239686048872e-01, 1.81817439526079427e-01, 1.53865594490023849e-01,
                 1.33009790330827077e-01, 1.21060466745314774e-01, 8.34026479392584730e-02,
                 1.70182849993352564e-01);
  const double h = 0.5 * t * t;
  return t - (h - s * (h + r));
}

// log(1 + e^x), <= 2 ulp: max(x, 0) + log1p(t), t = e^-|x| in (0, 1].
VAEFAST_FN float softplus(float x) { return (x > 0.0f ? x : 0.0f) + log1p_unit(exp(-abs(x))); }
VAEFAST_FN double softplus(double x) { return (x > 0.0 ? x : 0.0) + log1p_unit(exp(-abs(x))); }

// 1/(1 + e^-x), <= 2 ulp in both tails.
// With t = e^-|x| and q = t/(1 + t): 1 - q for x >= 0, t - t q below, where q alone would keep the
// rounding error of 1 + t (2.2 ulp).
VAEFAST_FN float sigmoid(float x) {
  const float t = exp(-abs(x));
  const float q = t / (1.0f + t);
  const float below = madd(-t, q, t);
  const float above = 1.0f - q;
  return x < 0.0f ? below : above;
}

VAEFAST_FN double sigmoid(double x) {
  const double t = exp(-abs(x));
  const double q = t / (1.0 + t);
  const double below = madd(-t, q, t);
  const double above = 1.0 - q;
  return x < 0.0 ? below : above;
}

// tanh x, <= 2.25 ulp.
// q = h/(1 + h), h = expm1(2|x|)/2; small q as h - h q, for the reason given at sigmoid.
VAEFAST_FN float tanh(float x) {
  const float a = abs(x);
  const float h = 0.5f * expm1(a > 10.0f ? 20.0f : 2.0f * a);
  const float q = h / (1.0f + h);
  const float corrected = madd(-h, q, h);
  return as_float(to_bits(h < 0.25f ? corrected : q) | (to_bits(x) & 0x80000000u));
}

VAEFAST_FN double tanh(double x) {
  const double a = abs(x);
  const double h = 0.5 * expm1(a > 20.0 ? 40.0 : 2.0 * a);
  const double q = h / (1.0 + h);
  const double corrected = madd(-h, q, h);
  return as_double(to_bits(h < 0.25 ? corrected : q) | (to_bits(x) & 0x8000000000000000ull));
}

// tanh x, <= 2.5 ulp, and 1 - |tanh x| and 1 - tanh(x)^2, <= 3 ulp, none as a difference, which
// keeps no digit of them from x = 9 (double: 18) on. The rest is 1/(1 + h), h as in tanh, and for
// the slope |tanh x| is 1 less that. Beyond |x| = 43.5 (350), where e^-2|x| ends to be a normal
// number, the rest stays what it is there, and the slope is 0.
VAEFAST_FN float tanh_and_slope(float x, float& rest, float& slope) {
  const float a = abs(x);
  const float h = 0.5f * expm1(a > 43.5f ? 87.0f : 2.0f * a);
  rest = 1.0f / (1.0f + h);
  slope = a > 43.5f ? 0.0f : rest * (2.0f - rest);
  const float q = h * rest;
  const float corrected = madd(-h, q, h);
  return as_float(to_bits(h < 0.25f ? corrected : q) | (to_bits(x) & 0x80000000u));
}

VAEFAST_FN double tanh_and_slope(double x, double& rest, double& slope) {
  const double a = abs(x);
  const double h = 0.5 * expm1(a > 350.0 ? 700.0 : 2.0 * a);
  rest = 1.0 / (1.0 + h);
  slope = a > 350.0 ? 0.0 : rest * (2.0 - rest);
  const double q = h * rest;
  const double corrected = madd(-h, q, h);
  return as_double(to_bits(h < 0.25 ? corrected : q) | (to_bits(x) & 0x8000000000000000ull));
}

// ---- sin and cos

// sin and cos of 2 pi u, 0 <= u <= 1, <= 1 ulp with FMA, 2 without.
// f = 4u - q is exact. pi/2 is used in two parts, the lower one inside the polynomial. Odd
// quadrants swap the two by their bits: SSE2 has no comparison of 64-bit integers.
VAEFAST_FN void sincos_2pi(float u, float& s, float& c) {
  const float t = madd(4.0f, u, 12582912.0f);
  const float f = madd(4.0f, u, -(t - 12582912.0f));
  const uint32_t q = to_bits(t);
  const float z = f * f;
  const float low =
      horner(z, -4.854137714e-08f, -6.459634900e-01f, 7.968036085e-02f, -4.602535628e-03f);
  const float sf = madd(f, 1.57079637f, f * low);
  const float cf = madd(
      z, horner(z, -1.233700514e+00f, 2.536686361e-01f, -2.085649595e-02f, 8.966450114e-04f), 1.0f);
  const uint32_t swap = (to_bits(sf) ^ to_bits(cf)) & (0u - (q & 1u));
  s = as_float(to_bits(sf) ^ swap ^ ((q & 2u) << 30));
  c = as_float(to_bits(cf) ^ swap ^ (((q + 1u) & 2u) << 30));
}

VAEFAST_FN void sincos_2pi(double u, double& s, double& c) {
  const double t = madd(4.0, u, 6755399441055744.0);
  const double f = madd(4.0, u, -(t - 6755399441055744.0));
  const uint64_t q = to_bits(t);
  const double z = f * f;
  const double low =
      horner(z, 5.62935908208845836e-17, -6.45964097506244284e-01, 7.96926262460415369e-02,
             -4.68175413231760370e-03, 1.60441150572790989e-04, -3.59864278131260325e-06,
             5.63386079141380104e-08);
  const double sf = madd(f, 1.57079632679489656e+00, f * low);
  const double cf =
      madd(z,
           horner(z, -1.23370055013616975e+00, 2.53669507901042646e-01, -2.08634807632191027e-02,
                  9.19260273189712366e-04, -2.52020312287434989e-05, 4.71045526170559291e-07,
                  -6.30423256249365102e-09),
           1.0);
  const uint64_t swap = (to_bits(sf) ^ to_bits(cf)) & (0u - (q & 1u));
  s = as_double(to_bits(sf) ^ swap ^ ((q & 2u) << 62));
  c = as_double(to_bits(cf) ^ swap ^ (((q + 1u) & 2u) << 62));
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
