// Measures what math/ does on a GPU against double, with the special-function unit's worst errors;
// fails where a stated bound breaks.
//
// device_math [points per range]; compiled with VAEFAST_ISA=isa_cuda (see math/config.h).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "math/gaussian.h"
#include "math/likelihoods.h"
#include "math/normal.h"

namespace m = vaefast::VAEFAST_ISA;

static int failures = 0, points = 200000;

struct Range {
  double low, high;
  bool logarithmic;
};

static double draw(std::mt19937_64& random, const Range& r) {
  const double u = std::uniform_real_distribution<double>(0, 1)(random);
  if (r.logarithmic) return r.low * std::pow(r.high / r.low, u);
  return r.low + (r.high - r.low) * u;
}

// The largest error of `got` in ulp of `want`, or of `least` where that is larger.
template <class Got, class Want>
static void check(const char* name, Range range, double bound, Got got, Want want,
                  double least = 0) {
  std::mt19937_64 random(1);
  double worst = 0, where = 0;
  for (int i = 0; i < points; ++i) {
    const float x = static_cast<float>(draw(random, range));
    const double right = want(static_cast<double>(x)), size = std::max(std::fabs(right), least);
    const double unit = std::ldexp(1.0, std::ilogb(size) - 23);
    const double error = std::fabs(got(x) - right) / unit;
    if (!(error <= worst)) {
      worst = error;
      where = x;
    }
  }
  const bool ok = worst <= bound;
  failures += !ok;
  std::printf("%-4s %-24s %6.2f ulp of %5.1f at %g\n", ok ? "ok" : "BAD", name, worst, bound,
              where);
}

static void functions() {
  const auto exp_ = [](double x) { return std::exp(x); };
  check("exp_normal", {-10, 10, false}, 3.5, [](float x) { return m::exp_normal(x); }, exp_);
  check("exp_normal", {-87, 88, false}, 8, [](float x) { return m::exp_normal(x); }, exp_);
  const auto excess = [](double x) {
    return std::fabs(x) < 1e-4 ? x * x * (0.5 + x / 6) : std::expm1(x) - x;
  };
  for (const Range& r : {Range{-2, 2, false}, {-80, 80, false}, {1e-9, 1, true}})
    check(
        "expm1_minus_x_normal", r, 12, [](float x) { return m::expm1_minus_x_normal(x); }, excess);
  for (const Range& r : {Range{-2, 2, false}, {-80, 80, false}, {1e-30, 1, true}})
    check(
        "expm1_normal", r, 10, [](float x) { return m::expm1_normal(x); },
        [](double x) { return std::expm1(x); });
  const auto log_ = [](double x) { return std::log(x); };
  check("log", {1e-30, 1e30, true}, 3.5, [](float x) { return m::device::log(x); }, log_, 1);
  check("log", {0.5, 2, false}, 3.5, [](float x) { return m::device::log(x); }, log_, 1);
  const auto log1p_ = [](double x) { return std::log1p(x); };
  for (const Range& r : {Range{1e-30, 1e30, true}, {0, 2, false}})
    check("log1p_positive", r, 8.5, [](float x) { return m::log1p_positive(x); }, log1p_);
  check(
      "log1p_finite", {-0.999, 2, false}, 8.5, [](float x) { return m::log1p_finite(x); }, log1p_);
  check(
      "normal_radius", {0x1p-32, 1, true}, 5.2, [](float u) { return m::normal_radius(u); },
      [](double u) { return std::sqrt(-2 * std::log(u)); }, 1);
  check(
      "normal_radius", {0.5, 1, false}, 4.2, [](float u) { return m::normal_radius(u); },
      [](double u) { return std::sqrt(-2 * std::log(u)); }, 1);
  check(
      "log_factorial_low", {0, 3, false}, 3, [](float x) { return m::log_factorial_low(x); },
      [](double x) { return std::lgamma(x + 1); }, 1);
}

// A likelihood's quick form against its own in double: the loss and each derivative, relative to
// its size or `least`, whichever is larger.
template <template <class> class F>
static void likelihood(const char* name, const double* numbers, bool whole, Range x_range,
                       std::initializer_list<Range> parameters, double bound, double least) {
  constexpr int n = F<float>::kParams;
  const F<float> single(numbers);
  const F<double> twice(numbers);
  std::mt19937_64 random(2);
  double worst[n + 1] = {}, plain[n + 1] = {}, at[n + 1][n + 1] = {};
  int odd_ones = 0;
  for (int i = 0; i < points; ++i) {
    const double drawn = draw(random, x_range);
    const float x = static_cast<float>(whole ? std::floor(drawn) : drawn);
    float theta[n], slope[n];
    double wide[n], right[n + 1];
    int k = 0;
    for (const Range& r : parameters) {
      theta[k] = static_cast<float>(draw(random, r));
      wide[k] = theta[k];
      ++k;
    }
    bool odd = false;
    const float value = single.template quick<true>(x, theta, slope, odd);
    right[0] = twice.template nll<true>(x, wide, right + 1);
    odd_ones += odd;
    float plain_slope[n];
    const float plain_value = single.template nll<true>(x, theta, plain_slope);
    for (int j = 0; j <= n && !odd; ++j) {
      const double got = j == 0 ? value : slope[j - 1];
      const double error = std::fabs(got - right[j]) / std::max(std::fabs(right[j]), least);
      const double other = j == 0 ? plain_value : plain_slope[j - 1];
      plain[j] =
          std::max(plain[j], std::fabs(other - right[j]) / std::max(std::fabs(right[j]), least));
      if (!(error <= worst[j])) {
        worst[j] = error;
        at[j][0] = x;
        for (int l = 0; l < n; ++l) at[j][l + 1] = theta[l];
      }
    }
  }
  for (int j = 0; j <= n; ++j) {
    const bool ok = worst[j] <= std::max(bound, 8 * plain[j]);
    failures += !ok;
    std::printf("%-4s %-24s output %d: %.2g of %.2g, plain %.2g, at", ok ? "ok" : "BAD", name, j,
                worst[j], bound, plain[j]);
    for (int l = 0; l <= n; ++l) std::printf(" %g", at[j][l]);
    std::printf("; %d odd\n", odd_ones);
  }
}

int main(int count, char** arguments) {
  if (count > 1) points = std::atoi(arguments[1]);
  functions();
  const double one[] = {1}, eps[] = {1e-8};
  const double pixels[] = {127.5, 127.5, -1, 2.0 / 255, 255, std::log(2.0 / 255)};
  likelihood<m::poisson>("poisson", one, true, {0, 12, false}, {{-5, 4, false}}, 4e-6, 1);
  likelihood<m::poisson>("poisson", one, false, {1e-3, 1e3, true}, {{-5, 8, false}}, 4e-6, 1);
  likelihood<m::negative_binomial>("negative_binomial", eps, true, {0, 10, false},
                                   {{1e-3, 1e3, true}, {1e-2, 1e3, true}}, 4e-6, 1);
  likelihood<m::negative_binomial>("negative_binomial", eps, true, {1, 1e5, true},
                                   {{1, 1e5, true}, {1e-2, 1e4, true}}, 4e-6, 1);
  likelihood<m::negative_binomial>("negative_bin, fractional", eps, false, {1e-3, 10, true},
                                   {{1e-3, 1e3, true}, {1e-2, 1e3, true}}, 4e-6, 1e-2);
  likelihood<m::zero_inflated_negative_binomial>(
      "zero_inflated_negative_b", eps, true, {0, 4, false},
      {{1e-3, 1e3, true}, {1e-2, 1e3, true}, {-8, 8, false}}, 4e-6, 1);
  likelihood<m::discretized_logistic>("discretized_logistic", pixels, false, {-1, 1, false},
                                      {{-1.2, 1.2, false}, {-5, 1, false}}, 4e-6, 1);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
