// What travels into the kernels over pairs of points. Every array is dense, of float, or of double
// where `wide`.
#pragma once

#include <cstdint>

namespace vaefast {

// Points z [points, dims] against diagonal Gaussians [components, dims].
struct GaussianMixtureArgs {
  int64_t points = 0, components = 0, dims = 0;
  bool wide = false;
  int threads = 1;
  const void *z = nullptr, *mu = nullptr, *logvar = nullptr;
  // [components]; absent: every component weighs the same, as log_weight says.
  const void* log_weights = nullptr;
  double log_weight = 0;

  // tc_terms: point i came from component first + i, whose weight is `own` times that of the
  // others; that of the component after it is `stratum` times.
  int64_t first = 0;
  double own = 1, stratum = 1;

  // Forward. values: [points], or mi, tc and dim_kl as [3, points]. The base-2 logarithms that the
  // backward pass needs: joint [points] in double, marginals [points, dims].
  void* values = nullptr;
  double* joint = nullptr;
  void* marginals = nullptr;

  // Backward. upstream is shaped as values; a gradient that is absent is not wanted.
  const void* upstream = nullptr;
  void *grad_z = nullptr, *grad_mu = nullptr, *grad_logvar = nullptr, *grad_log_weights = nullptr;
};

constexpr int kMaxScales = 32;

// factor_xx sum_{i != j} k(x_i, x_j) + factor_yy sum_{i != j} k(y_i, y_j)
// + factor_xy sum_{i, j} k(x_i, y_j) + constant.
struct MmdArgs {
  int64_t x_points = 0, y_points = 0, dims = 0;
  bool wide = false;
  int threads = 1;
  const void *x = nullptr, *y = nullptr;
  // sum_s exp(-d^2 / scale_s), or sum_s scale_s / (scale_s + d^2).
  bool rbf = false;
  int scales = 0;
  double scale[kMaxScales] = {};
  double factor_xx = 0, factor_yy = 0, factor_xy = 0, constant = 0;

  void* value = nullptr;
  // A gradient that is absent is not wanted.
  void *grad_x = nullptr, *grad_y = nullptr;
};

}  // namespace vaefast
