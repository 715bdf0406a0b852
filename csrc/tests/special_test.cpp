// Measures math/special.h and math/gamma.h against long double; fails where a stated bound breaks.
//
// special_test [points per range] takes each function over its ranges, in loops such as kernels
// have. That these vectorise the compiler tells, with the flags of each instruction set: each line
// with a LOOP must come at least twice (float and double), with 16, 32 or 64 byte vectors.
//   g++ -std=c++17 -O3 -fno-math-errno -fno-trapping-math -mavx2 -mfma -fopt-info-vec -I..
//       special_test.cpp 2>&1 | grep 'special_test.cpp:.*vectorized' | sort | uniq -c
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include "math/bounded.h"
#include "math/gamma.h"
#include "math/gaussian.h"

namespace m = vaefast::VAEFAST_ISA;
using real = long double;

// ---- the loops under test

#define NOINLINE __attribute__((noinline))
#define LOOP(name, call)                                   \
  template <class T>                                       \
  NOINLINE void name(T* __restrict y, const T* x, int n) { \
    for (int i = 0; i < n; ++i) y[i] = call;               \
  }

template <class T>
VAEFAST_FN T sin_2pi(T u) {
  T s, c;
  m::sincos_2pi(u, s, c);
  return s;
}

template <class T>
VAEFAST_FN T cos_2pi(T u) {
  T s, c;
  m::sincos_2pi(u, s, c);
  return c;
}

// NaN where the form without clamps has other bits than the one with them.
template <class T>
VAEFAST_FN T checked(T x, T value, T normal) {
  const bool differs = (m::abs(x) < m::kNormalLogvar<T>)&(value != normal);
  return differs ? T(NAN) : value;
}

template <class T>
VAEFAST_FN T std_of(T x) {
  T std, kl, std_normal, kl_normal;
  m::std_and_kl(x, std, kl);
  m::std_and_kl_normal(x, std_normal, kl_normal);
  return checked(x, std, std_normal);
}

template <class T>
VAEFAST_FN T kl_of(T x) {
  T std, kl, std_normal, kl_normal;
  m::std_and_kl(x, std, kl);
  m::std_and_kl_normal(x, std_normal, kl_normal);
  return checked(x, kl, kl_normal);
}

template <class T>
VAEFAST_FN T tanh_rest(T x) {
  T rest, slope;
  m::tanh_and_slope(x, rest, slope);
  return rest;
}

template <class T>
VAEFAST_FN T tanh_slope(T x) {
  T rest, slope;
  m::tanh_and_slope(x, rest, slope);
  return slope;
}

template <class T>
VAEFAST_FN T tanh_beside(T x) {
  T rest, slope;
  return m::tanh_and_slope(x, rest, slope);
}

LOOP(loop_exp, m::exp(x[i]))
LOOP(loop_log, m::log(x[i]))
LOOP(loop_log1p, m::log1p(x[i]))
LOOP(loop_log1p_finite, m::log1p_finite(x[i]))
LOOP(loop_exp_normal, m::exp_normal(x[i]))
LOOP(loop_exp_finite, m::exp_finite(x[i]))
LOOP(loop_exp2, m::exp2(x[i]))
LOOP(loop_expm1, m::expm1(x[i]))
LOOP(loop_expm1_minus_x, m::expm1_minus_x(x[i]))
LOOP(loop_std_of, std_of(x[i]))
LOOP(loop_kl_of, kl_of(x[i]))
LOOP(loop_softplus, m::softplus(x[i]))
LOOP(loop_sigmoid, m::sigmoid(x[i]))
LOOP(loop_tanh, m::tanh(x[i]))
LOOP(loop_tanh_beside, tanh_beside(x[i]))
LOOP(loop_tanh_rest, tanh_rest(x[i]))
LOOP(loop_tanh_slope, tanh_slope(x[i]))
LOOP(loop_sqrt, m::sqrt(x[i]))
LOOP(loop_sin_2pi, sin_2pi(x[i]))
LOOP(loop_cos_2pi, cos_2pi(x[i]))
LOOP(loop_lgamma, m::lgamma(x[i]))
LOOP(loop_digamma, m::digamma(x[i]))

// ---- the truth

real exp_ref(real x) { return std::exp(x); }
real exp2_ref(real x) { return std::exp2(x); }
real std_ref(real x) { return std::exp(x / 2); }
real log_ref(real x) { return std::log(x); }
real log1p_ref(real x) { return std::log1p(x); }
real expm1_ref(real x) { return std::expm1(x); }
real softplus_ref(real x) { return x > 40 ? x + std::exp(-x) : std::log1p(std::exp(x)); }
real sigmoid_ref(real x) { return 1 / (1 + std::exp(-x)); }
real tanh_ref(real x) { return std::tanh(x); }
real tanh_rest_ref(real x) { return 2 / (std::exp(2 * std::fabs(x)) + 1); }
real tanh_slope_ref(real x) { return 1 / (std::cosh(x) * std::cosh(x)); }
real sqrt_ref(real x) { return std::sqrt(x); }
real lgamma_ref(real x) { return std::lgamma(x); }

real expm1_minus_x_ref(real x) {
  if (std::fabs(x) > 1) return std::expm1(x) - x;
  real sum = 0;
  for (int k = 25; k >= 2; --k) sum = (sum * x + 1) / k;
  return sum * x * x;
}

real kl_ref(real x) { return expm1_minus_x_ref(x) / 2; }

const real kHalfPi = 1.57079632679489661923132169163975144L;

real sin_2pi_ref(real u) {
  const int q = static_cast<int>(std::lround(4 * u));
  const real a = (4 * u - q) * kHalfPi;
  return (q & 2 ? -1 : 1) * (q & 1 ? std::cos(a) : std::sin(a));
}

real cos_2pi_ref(real u) {
  const int q = static_cast<int>(std::lround(4 * u));
  const real a = (4 * u - q) * kHalfPi;
  return ((q + 1) & 2 ? -1 : 1) * (q & 1 ? std::sin(a) : std::cos(a));
}

real digamma_ref(real x) {
  real shift = 0;
  for (; x < 24; x += 1) shift += 1 / x;
  const real z = 1 / (x * x);
  const real c[] = {1.0L / 12,  -1.0L / 120,     1.0L / 252, -1.0L / 240,
                    1.0L / 132, -691.0L / 32760, 1.0L / 12,  -3617.0L / 8160};
  real tail = 0;
  for (int i = 7; i >= 0; --i) tail = tail * z + c[i];
  return std::log(x) - 0.5L / x - tail * z - shift;
}

// ---- sweeps

struct Range {
  double lo, hi;
  // Uniform in log |x|; a negative pair covers the negative numbers.
  bool geometric;
};

template <class T>
struct Case {
  const char* name;
  void (*loop)(T*, const T*, int);
  real (*ref)(real);
  // In ulp, with FMA and without.
  double bound, bound_no_fma;
  std::vector<Range> ranges;
  // Near a zero of the function an ulp is taken to be at least that of this value.
  double floor = 0;
};

template <class T>
real ulp(real y) {
  const real a = std::fabs(y);
  if (!(a > std::numeric_limits<T>::min())) return std::numeric_limits<T>::denorm_min();
  int e;
  std::frexp(a, &e);
  return std::ldexp(real(1), e - std::numeric_limits<T>::digits);
}

template <class T>
real error(T got, real want, double floor) {
  const T rounded = static_cast<T>(want);
  if (std::isnan(got) || std::isnan(want)) {
    return std::isnan(got) && std::isnan(want) ? 0 : std::numeric_limits<real>::infinity();
  }
  // The largest number and inf are neighbours.
  if (std::isinf(got) != std::isinf(rounded)) {
    const real finite = std::isinf(got) ? want : real(got);
    const real last = std::numeric_limits<T>::max() * (1 - std::numeric_limits<T>::epsilon());
    return std::fabs(finite) > last ? 1 : std::numeric_limits<real>::infinity();
  }
  if (std::isinf(got)) return got == rounded ? 0 : std::numeric_limits<real>::infinity();
  return std::fabs(got - want) / ulp<T>(std::fmax(std::fabs(want), real(floor)));
}

int failures = 0;

template <class T>
const char* type_name() {
  return std::is_same<T, float>::value ? "float" : "double";
}

template <class T>
void sweep(const Case<T>& c, long points) {
  std::mt19937_64 random(1271);
  std::uniform_real_distribution<double> uniform(0, 1);
  const int block = 4001;
  std::vector<T> x(block), y(block);
  real worst = 0;
  T where = 0;
  for (const Range& range : c.ranges) {
    for (long done = 0; done < points; done += block) {
      for (T& v : x) {
        const double u = uniform(random);
        v = static_cast<T>(range.geometric
                               ? std::copysign(std::exp(std::log(std::fabs(range.lo)) * (1 - u) +
                                                        std::log(std::fabs(range.hi)) * u),
                                               range.lo)
                               : range.lo + (range.hi - range.lo) * u);
      }
      c.loop(y.data(), x.data(), block);
      for (int i = 0; i < block; ++i) {
        const real e = error(y[i], c.ref(x[i]), c.floor);
        if (!(e <= worst)) {
          worst = e;
          where = x[i];
        }
      }
    }
  }
  const double bound = VAEFAST_HAS_FMA ? c.bound : c.bound_no_fma;
  const bool ok = worst <= bound;
  failures += !ok;
  std::printf("%-14s %-6s %8.3Lf ulp (bound %g) at %.17g%s\n", c.name, type_name<T>(), worst, bound,
              static_cast<double>(where), ok ? "" : "  FAILED");
}

template <class T>
void sweep_all(long points) {
  const bool f = std::is_same<T, float>::value;
  const double tiny = std::numeric_limits<T>::denorm_min(), huge = std::numeric_limits<T>::max();
  const double top = f ? 89 : 710, bottom = f ? -104 : -746, small = f ? 1e-30 : 1e-150;
  const Range near{small, 1, true}, near_negative{-small, -1, true};
  const Range flat{f ? T(-43.5) : T(-350), f ? T(43.5) : T(350), false};
  const Range middle{-3, 3, false}, whole{bottom, top, false};
  const Range positive{tiny, huge, true}, around_one{0.4, 3.6, false};
  const std::vector<Range> exponent{near, near_negative, middle, whole};
  const std::vector<Range> saturated{near, {-25, 25, false}, {T(-1.5), T(1.5), false}, flat};
  const std::vector<Range> gamma{{tiny, 1, true},
                                 {0.9, 1.1, false},
                                 {1.9, 2.1, false},
                                 around_one,
                                 {2.5, 20, false},
                                 {10, 1e9, true},
                                 {1e8, f ? 4e36 : 2e305, true}};
  const std::vector<Case<T>> cases = {
      {"exp", loop_exp<T>, exp_ref, 1, 1, exponent},
      {"exp_normal", loop_exp_normal<T>, exp_ref, 1, 1, {{f ? T(-87.3) : T(-708), 88, false}}},
      {"exp_finite",
       loop_exp_finite<T>,
       exp_ref,
       1,
       1,
       {{f ? T(-87.3) : T(-708), f ? T(88.3) : T(709.3), false}}},
      {"exp2", loop_exp2<T>, exp2_ref, f ? 2.5 : 96, f ? 2.5 : 96, {{-100, T(126.9), false}}},
      {"expm1", loop_expm1<T>, expm1_ref, 1.5, 1.5, exponent},
      {"expm1_minus_x", loop_expm1_minus_x<T>, expm1_minus_x_ref, 3, 3, exponent},
      {"std_of", loop_std_of<T>, std_ref, 1, 1, exponent},
      {"kl_of", loop_kl_of<T>, kl_ref, 5, 5, exponent},
      {"log",
       loop_log<T>,
       log_ref,
       f ? 1 : 1.5,
       f ? 1 : 1.5,
       {positive, around_one, {0.99, 1.01, false}}},
      {"log1p",
       loop_log1p<T>,
       log1p_ref,
       f ? 1 : 2,
       f ? 1 : 2,
       {positive, {-small, -0.999999, true}, {-1, 4, false}}},
      {"log1p_finite",
       loop_log1p_finite<T>,
       log1p_ref,
       f ? 1 : 2,
       f ? 1 : 2,
       {{small, T(1e36), true}, {-small, -0.999999, true}, {T(-0.9999), 4, false}}},
      {"softplus", loop_softplus<T>, softplus_ref, 2, 2, exponent},
      {"sigmoid", loop_sigmoid<T>, sigmoid_ref, 2, 2, exponent},
      {"tanh", loop_tanh<T>, tanh_ref, 2.25, 2.25, {near, near_negative, {-25, 25, false}}},
      {"tanh_beside",
       loop_tanh_beside<T>,
       tanh_ref,
       2.5,
       2.5,
       {near, near_negative, {-25, 25, false}}},
      {"tanh_rest", loop_tanh_rest<T>, tanh_rest_ref, 3, 3, saturated},
      {"tanh_slope", loop_tanh_slope<T>, tanh_slope_ref, 3, 3, saturated},
      {"sin_2pi", loop_sin_2pi<T>, sin_2pi_ref, 1, 2, {near, {0, 1, false}}},
      {"cos_2pi", loop_cos_2pi<T>, cos_2pi_ref, 1, 2, {near, {0, 1, false}}},
      {"sqrt", loop_sqrt<T>, sqrt_ref, 0.5, 0.5, {positive}},
      {"lgamma", loop_lgamma<T>, lgamma_ref, f ? 4 : 8, f ? 4 : 8, gamma},
      {"digamma", loop_digamma<T>, digamma_ref, f ? 4 : 16, f ? 4 : 16, gamma, f ? 0 : 0.03},
  };
  for (const Case<T>& c : cases) sweep(c, points);
}

// ---- edges

template <class T>
void edge(const char* name, void (*loop)(T*, const T*, int), T x, T want) {
  // In every lane, remainder included.
  T in[41], out[41];
  for (T& v : in) v = x;
  loop(out, in, 41);
  for (T got : out) {
    if (got == want || (std::isnan(got) && std::isnan(want))) continue;
    std::printf("%s(%g) %s: got %g, want %g  FAILED\n", name, static_cast<double>(x),
                type_name<T>(), static_cast<double>(got), static_cast<double>(want));
    ++failures;
    return;
  }
}

template <class T>
void edges() {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const T tiny = std::numeric_limits<T>::denorm_min(), huge = std::numeric_limits<T>::max();
  const T top = std::is_same<T, float>::value ? 88.72283 : 709.782712893384;
  const int before = failures;
  struct Row {
    const char* name;
    void (*loop)(T*, const T*, int);
    std::vector<std::pair<T, T>> pairs;
  };
  const T far = 1e4;
  const Row rows[] = {
      {"exp",
       loop_exp<T>,
       {{inf, inf},
        {-inf, 0},
        {0, 1},
        {far, inf},
        {-far, 0},
        {top, T(std::exp(real(top)))},
        {top * T(1.000001), inf}}},
      {"expm1",
       loop_expm1<T>,
       {{inf, inf},
        {-inf, -1},
        {0, 0},
        {far, inf},
        {-far, -1},
        {tiny, tiny},
        {top * T(1.000001), inf}}},
      {"expm1_minus_x", loop_expm1_minus_x<T>, {{inf, inf}, {-inf, inf}, {0, 0}, {far, inf}}},
      {"std_of", loop_std_of<T>, {{inf, inf}, {-inf, 0}, {0, 1}, {far, inf}}},
      {"kl_of",
       loop_kl_of<T>,
       {{inf, inf}, {-inf, inf}, {0, 0}, {far, inf}, {-far, (far - 1) / 2}}},
      {"log",
       loop_log<T>,
       {{inf, inf},
        {-inf, nan},
        {0, -inf},
        {T(-0.0), -inf},
        {-1, nan},
        {-tiny, nan},
        {1, 0},
        {tiny, T(std::log(real(tiny)))},
        {huge, T(std::log(real(huge)))}}},
      {"log1p",
       loop_log1p<T>,
       {{inf, inf}, {-inf, nan}, {-1, -inf}, {-2, nan}, {0, 0}, {tiny, tiny}}},
      {"log1p_finite", loop_log1p_finite<T>, {{0, 0}, {tiny, tiny}}},
      {"exp_normal", loop_exp_normal<T>, {{0, 1}}},
      {"exp_finite", loop_exp_finite<T>, {{0, 1}}},
      {"softplus", loop_softplus<T>, {{inf, inf}, {-inf, 0}, {far, far}, {-far, 0}, {huge, huge}}},
      {"sigmoid", loop_sigmoid<T>, {{inf, 1}, {-inf, 0}, {0, T(0.5)}, {far, 1}, {-far, 0}}},
      {"tanh", loop_tanh<T>, {{inf, 1}, {-inf, -1}, {0, 0}, {far, 1}, {-far, -1}, {tiny, tiny}}},
      {"tanh_beside", loop_tanh_beside<T>, {{inf, 1}, {-inf, -1}, {0, 0}, {tiny, tiny}}},
      {"tanh_rest", loop_tanh_rest<T>, {{0, 1}, {tiny, 1}}},
      {"tanh_slope", loop_tanh_slope<T>, {{inf, 0}, {-inf, 0}, {far, 0}, {-far, 0}, {0, 1}}},
      {"sin_2pi", loop_sin_2pi<T>, {{0, 0}, {T(0.25), 1}, {T(0.5), 0}, {T(0.75), -1}, {1, 0}}},
      {"cos_2pi", loop_cos_2pi<T>, {{0, 1}, {T(0.25), 0}, {T(0.5), -1}, {T(0.75), 0}, {1, 1}}},
      {"sqrt", loop_sqrt<T>, {{inf, inf}, {0, 0}, {-1, nan}, {4, 2}}},
      {"lgamma", loop_lgamma<T>, {{inf, inf}, {0, inf}, {1, 0}, {2, 0}, {huge, inf}, {-1, nan}}},
      {"digamma", loop_digamma<T>, {{inf, inf}, {0, -inf}, {tiny, -inf}, {-1, nan}}},
  };
  for (const Row& r : rows) {
    for (const auto& [x, want] : r.pairs) edge(r.name, r.loop, x, want);
    edge(r.name, r.loop, nan, nan);
  }
  std::printf("edges          %-6s %s\n", type_name<T>(), failures == before ? "right" : "FAILED");
}

int main(int argc, char** argv) {
  const long points = argc > 1 ? std::atol(argv[1]) : 100000;
  sweep_all<float>(points);
  sweep_all<double>(points);
  edges<float>();
  edges<double>();
  return failures != 0;
}
