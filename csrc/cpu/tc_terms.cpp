// The terms of beta-TCVAE's decomposition of the KL, over all pairs of a sample and a posterior.
#include "cpu/kernels.h"
#include "cpu/pairs.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// The pairs whose weight differs from the others': a point's own component and the one after it.
struct Special {
  int64_t first, components;
  double own, stratum;

  explicit Special(const GaussianMixtureArgs& args)
      : first(args.first), components(args.components), own(args.own), stratum(args.stratum) {}
  bool any() const { return own != 1 || stratum != 1; }

  // The weights of a tile; false, and nothing written, where all of them are 1.
  template <class T>
  bool fill(int64_t row, int64_t rows, int64_t col, int64_t cols, T* weights) const {
    if (!any()) return false;
    bool found = false;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t j = first + row + r, next = j + 1 == components ? 0 : j + 1;
      found |= (j >= col) & (j < col + cols);
      found |= (next >= col) & (next < col + cols);
    }
    if (!found) return false;
    for (int64_t i = 0; i < rows * kPairCols; ++i) weights[i] = T(1);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t j = first + row + r, next = j + 1 == components ? 0 : j + 1;
      T* w = weights + r * kPairCols;
      // A component that is its own successor has its own weight alone.
      if ((next >= col) & (next < col + cols)) w[next - col] = T(stratum);
      if ((j >= col) & (j < col + cols)) w[j - col] = T(own);
    }
    return true;
  }
};

// The sums over a tile's columns of weight 2^(peak - u^2) in one to four dimensions, and their
// share of the joint distances, which are added up as distance_rows does. kPairCols apart: mean,
// rate and peak of the next dimension.
template <int kDims, bool kWeighted, class T>
VAEFAST_FN void add_row(const T* z, const T* mean, const T* rate, const T* peak, const T* weight,
                        int64_t width, T* distance, double* sums) {
  constexpr int64_t b = kDims > 1 ? kPairCols : 0, c = 2 * b, d = 3 * b;
  const T z0 = z[0], z1 = z[kDims > 1 ? 1 : 0], z2 = z[kDims > 1 ? 2 : 0],
          z3 = z[kDims > 1 ? 3 : 0];
  Running<T> s0, s1, s2, s3;
  for (int64_t at = 0; at < width; at += kPairLanes) {
#pragma omp simd
    for (int64_t i = 0; i < kPairLanes; ++i) {
      const int64_t l = at + i;
      const T w = kWeighted ? weight[l] : T(1);
      const T u0 = (z0 - mean[l]) * rate[l];
      const T e0 = exp2(madd(-u0, u0, peak[l]));
      s0.lane[i] += kWeighted ? e0 * w : e0;
      if constexpr (kDims == 1) {
        distance[l] = madd(u0, u0, distance[l]);
      } else {
        const T u1 = (z1 - mean[l + b]) * rate[l + b], e1 = exp2(madd(-u1, u1, peak[l + b]));
        const T u2 = (z2 - mean[l + c]) * rate[l + c], e2 = exp2(madd(-u2, u2, peak[l + c]));
        const T u3 = (z3 - mean[l + d]) * rate[l + d], e3 = exp2(madd(-u3, u3, peak[l + d]));
        s1.lane[i] += kWeighted ? e1 * w : e1;
        s2.lane[i] += kWeighted ? e2 * w : e2;
        s3.lane[i] += kWeighted ? e3 * w : e3;
        distance[l] += madd(u3, u3, madd(u2, u2, madd(u1, u1, u0 * u0)));
      }
    }
  }
  sums[0] += static_cast<double>(s0.total());
  if constexpr (kDims > 1) {
    sums[1] += static_cast<double>(s1.total());
    sums[2] += static_cast<double>(s2.total());
    sums[3] += static_cast<double>(s3.total());
  }
}

// log2 of a sum that underflowed, z being far from every component: with its own maximum.
template <class T>
double far_marginal(const Components<T>& c, const Special& special, int64_t point, int64_t dim,
                    T z) {
  LogSum sum;
  T x[kPairCols], weights[kPairCols];
  for (int64_t block = 0; block < c.columns.blocks; ++block) {
    const int64_t at = c.at(block, dim), width = c.columns.padded(block);
    for (int64_t l = 0; l < width; ++l) {
      const T u = (z - c.mean[at + l]) * c.rate[at + l];
      x[l] = u * u;
    }
    const bool weighted = special.fill(point, 1, block * kPairCols, kPairCols, weights);
    sum.add(c.peak.get() + at, x, weighted ? weights : static_cast<const T*>(nullptr), width);
  }
  return sum.log2();
}

// Below this, terms that exp2 takes for 0 would be missed.
constexpr double kFar = 0x1p-60;

template <class T>
struct Forward {
  const GaussianMixtureArgs& args;
  const Components<T>& c;
  const Special special;

  void rows(int64_t begin, int64_t count, double* sums) const {
    const int64_t dims = c.dims;
    const T* z = static_cast<const T*>(args.z) + begin * dims;
    alignas(64) T joint[kPairRows * kPairCols], weights[kPairRows * kPairCols];
    LogSum joints[kPairRows];
    memset(static_cast<void*>(sums), 0, static_cast<size_t>(count * dims) * sizeof(double));
    for (int64_t block = 0; block < c.columns.blocks; ++block) {
      const int64_t width = c.columns.padded(block);
      const bool weighted = special.fill(begin, count, block * kPairCols, kPairCols, weights);
      if (weighted) {
        block_sums<true>(z, count, block, weights, joint, sums);
      } else {
        block_sums<false>(z, count, block, weights, joint, sums);
      }
      for (int64_t r = 0; r < count; ++r)
        joints[r].add(c.total.get() + block * kPairCols, joint + r * kPairCols,
                      weighted ? weights + r * kPairCols : static_cast<const T*>(nullptr), width);
    }
    for (int64_t r = 0; r < count; ++r) finish(begin + r, joints[r].log2(), sums + r * dims);
  }

  template <bool kWeighted>
  void block_sums(const T* z, int64_t count, int64_t block, const T* weights, T* distances,
                  double* sums) const {
    const int64_t dims = c.dims, width = c.columns.padded(block);
    memset(static_cast<void*>(distances), 0, static_cast<size_t>(count * kPairCols) * sizeof(T));
    int64_t d = 0;
    for (; d + 4 <= dims; d += 4) {
      const int64_t at = c.at(block, d);
      for (int64_t r = 0; r < count; ++r)
        add_row<4, kWeighted>(z + r * dims + d, c.mean.get() + at, c.rate.get() + at,
                              c.peak.get() + at, weights + r * kPairCols, width,
                              distances + r * kPairCols, sums + r * dims + d);
    }
    for (; d < dims; ++d) {
      const int64_t at = c.at(block, d);
      for (int64_t r = 0; r < count; ++r)
        add_row<1, kWeighted>(z + r * dims + d, c.mean.get() + at, c.rate.get() + at,
                              c.peak.get() + at, weights + r * kPairCols, width,
                              distances + r * kPairCols, sums + r * dims + d);
    }
  }

  void finish(int64_t i, double joint, const double* sums) const {
    const int64_t dims = c.dims;
    const T* z = static_cast<const T*>(args.z) + i * dims;
    const T* mu = static_cast<const T*>(args.mu) + (args.first + i) * dims;
    const T* logvar = static_cast<const T*>(args.logvar) + (args.first + i) * dims;
    T* marginals = static_cast<T*>(args.marginals) + i * dims;
    double product = 0, squares = 0, own = 0;
    for (int64_t d = 0; d < dims; ++d) {
      const double log2_sum =
          sums[d] < kFar ? far_marginal(c, special, i, d, z[d]) : kLog2E * log(sums[d]);
      marginals[d] = static_cast<T>(log2_sum);
      product += (log2_sum + c.top[d]) * kLn2 + args.log_weight;
      const double value = z[d], t = value - static_cast<double>(mu[d]), lv = logvar[d];
      const double root = whitening_root(lv), near = t * root * root;
      own += near * near + lv;
      squares += value * value;
    }
    const double constant = static_cast<double>(dims) * kLog2Pi;
    const double log_qz = (joint + c.total_top) * kLn2 + args.log_weight;
    args.joint[i] = joint;
    T* values = static_cast<T*>(args.values) + i;
    values[0] = static_cast<T>(-0.5 * (own + constant) - log_qz);
    values[args.points] = static_cast<T>(log_qz - product);
    values[2 * args.points] = static_cast<T>(product + 0.5 * (squares + constant));
  }
};

template <class T>
bool forward(const GaussianMixtureArgs& args) {
  const Components<T> c(args);
  const Buffer<double> sums(args.points * args.dims);
  if (c.failed() | sums.failed()) return false;
  const Forward<T> run{args, c, Special(args)};
#pragma omp parallel for num_threads(args.threads) if (args.threads > 1) schedule(static)
  for (int64_t block = 0; block < ceil_div(args.points, kPairRows); ++block) {
    const int64_t begin = block * kPairRows, left = args.points - begin;
    run.rows(begin, left < kPairRows ? left : kPairRows, sums.get() + begin * args.dims);
  }
  return true;
}

// A row of a tile in one dimension: how the pairs' gradient is put together.
template <class T>
struct Row {
  T z, marginal, factor;
  // The joint density's share of the gradient, and the weights: [kPairCols]
  const T *joint, *weight;
};

template <bool kWeighted, class T>
VAEFAST_FN void add_pair(const Row<T>& row, T mean, T rate, T peak, int64_t l, T& zeroth, T& first,
                         T& second, T& total) {
  const T u = (row.z - mean) * rate;
  const T e = exp2(madd(-u, u, peak) - row.marginal);
  const T g = madd(kWeighted ? e * row.weight[l] : e, row.factor, row.joint[l]);
  const T gu = g * u;
  zeroth += g;
  first += gu;
  second = madd(gu, u, second);
  total = madd(gu, rate, total);
}

// The sums over a tile's rows of g, g u and g u^2 for each column, and over its columns of
// g u rate for each row. Two rows share the loads and stores of the columns.
template <bool kWeighted, class T>
void add_dim(const Row<T>* rows, int64_t count, const T* mean, const T* rate, const T* peak,
             int64_t width, T* zeroth, T* first, T* second, T* totals) {
  int64_t r = 0;
  for (; r + 2 <= count; r += 2) {
    const Row<T> a = rows[r], b = rows[r + 1];
    Running<T> total0, total1;
    for (int64_t at = 0; at < width; at += kPairLanes) {
#pragma omp simd
      for (int64_t i = 0; i < kPairLanes; ++i) {
        const int64_t l = at + i;
        T s0 = zeroth[l], s1 = first[l], s2 = second[l];
        add_pair<kWeighted>(a, mean[l], rate[l], peak[l], l, s0, s1, s2, total0.lane[i]);
        add_pair<kWeighted>(b, mean[l], rate[l], peak[l], l, s0, s1, s2, total1.lane[i]);
        zeroth[l] = s0;
        first[l] = s1;
        second[l] = s2;
      }
    }
    totals[r] = total0.total();
    totals[r + 1] = total1.total();
  }
  if (r < count) {
    const Row<T> a = rows[r];
    Running<T> total;
    for (int64_t at = 0; at < width; at += kPairLanes) {
#pragma omp simd
      for (int64_t i = 0; i < kPairLanes; ++i) {
        const int64_t l = at + i;
        add_pair<kWeighted>(a, mean[l], rate[l], peak[l], l, zeroth[l], first[l], second[l],
                            total.lane[i]);
      }
    }
    totals[r] = total.total();
  }
}

template <class T>
struct Backward {
  const GaussianMixtureArgs& args;
  const Components<T>& c;
  const Special special;
  T *zeroth, *first, *second, *grad_z;

  void tile(int64_t begin, int64_t rows, int64_t block) const {
    const int64_t dims = c.dims, width = c.columns.padded(block), points = args.points;
    const T* z = static_cast<const T*>(args.z) + begin * dims;
    const T* marginals = static_cast<const T*>(args.marginals) + begin * dims;
    const T* grad_mi = static_cast<const T*>(args.upstream) + begin;
    const T *grad_tc = grad_mi + points, *grad_dim = grad_tc + points;
    alignas(64) T joint[kPairRows * kPairCols], weights[kPairRows * kPairCols];
    const bool weighted = special.fill(begin, rows, block * kPairCols, kPairCols, weights);
    const T* total = c.total.get() + block * kPairCols;
    distance_rows(c, block, width, z, rows, joint);
    for (int64_t r = 0; r < rows; ++r) {
      T* g = joint + r * kPairCols;
      const T* w = weights + r * kPairCols;
      const Divisor<T> by(args.joint[begin + r]);
      const T shift = by.shift, factor = (grad_tc[r] - grad_mi[r]) * by.rest;
#pragma omp simd
      for (int64_t l = 0; l < width; ++l) g[l] = factor * exp2((total[l] - g[l]) - shift);
      if (weighted)
        for (int64_t l = 0; l < width; ++l) g[l] *= w[l];
    }
    Row<T> row[kPairRows];
    for (int64_t d = 0; d < dims; ++d) {
      for (int64_t r = 0; r < rows; ++r)
        row[r] = {z[r * dims + d], marginals[r * dims + d], grad_dim[r] - grad_tc[r],
                  joint + r * kPairCols, weights + r * kPairCols};
      alignas(64) T s0[kPairCols] = {}, s1[kPairCols] = {}, s2[kPairCols] = {};
      T totals[kPairRows];
      const int64_t at = c.at(block, d);
      const T *m = c.mean.get() + at, *s = c.rate.get() + at, *p = c.peak.get() + at;
      if (weighted) {
        add_dim<true>(row, rows, m, s, p, width, s0, s1, s2, totals);
      } else {
        add_dim<false>(row, rows, m, s, p, width, s0, s1, s2, totals);
      }
      for (int64_t l = 0; l < width; ++l) {
        zeroth[at + l] += s0[l];
        first[at + l] += s1[l];
        second[at + l] += s2[l];
      }
      for (int64_t r = 0; r < rows; ++r) grad_z[(begin + r) * dims + d] += totals[r];
    }
  }
};

// log q(z|x) and log p(z), which concern a point and its own component alone.
template <class T>
void add_own(const GaussianMixtureArgs& args) {
  const int64_t dims = args.dims;
  const T *z = static_cast<const T*>(args.z), *mu = static_cast<const T*>(args.mu);
  const T* logvar = static_cast<const T*>(args.logvar);
  T *grad_z = static_cast<T*>(args.grad_z), *grad_mu = static_cast<T*>(args.grad_mu);
  T* grad_logvar = static_cast<T*>(args.grad_logvar);
  const T *grad_mi = static_cast<const T*>(args.upstream), *grad_dim = grad_mi + 2 * args.points;
  for (int64_t i = 0; i < args.points; ++i) {
    const int64_t own = (args.first + i) * dims, at = i * dims;
    const T g = grad_mi[i], prior = grad_dim[i];
    for (int64_t d = 0; d < dims; ++d) {
      const T root = whitening_root(logvar[own + d]);
      const T near = (z[at + d] - mu[own + d]) * root * root, slope = near * root * root;
      grad_z[at + d] += prior * z[at + d] - g * slope;
      grad_mu[own + d] += g * slope;
      grad_logvar[own + d] += T(0.5) * g * madd(near, near, T(-1));
    }
  }
}

template <class T>
bool backward(const GaussianMixtureArgs& args) {
  const Components<T> c(args);
  const int64_t cells = c.columns.blocks * c.dims * kPairCols;
  const Buffer<T> zeroth(cells, true), first(cells, true), second(cells, true);
  const Buffer<T> grad_z(args.points * c.dims, true);
  if (c.failed() | zeroth.failed() | first.failed() | second.failed() | grad_z.failed())
    return false;
  const Backward<T> run{args,         c,           Special(args), zeroth.get(), first.get(),
                        second.get(), grad_z.get()};
  const Rounds rounds(ceil_div(args.points, kPairRows), c.columns.blocks);
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  for (int64_t round = 0; round < rounds.count; ++round) {
#pragma omp for schedule(static)
    for (int64_t part = 0; part < rounds.count; ++part)
      rounds.visit(round, part, [&](int64_t row, int64_t col) {
        const int64_t begin = row * kPairRows, left = args.points - begin;
        run.tile(begin, left < kPairRows ? left : kPairRows, col);
      });
  }
  put_gradients(args, c, zeroth.get(), true, first.get(), second.get(), grad_z.get());
  add_own<T>(args);
  return true;
}

}  // namespace

bool tc_terms(const GaussianMixtureArgs& args) {
  return args.wide ? forward<double>(args) : forward<float>(args);
}

bool tc_terms_backward(const GaussianMixtureArgs& args) {
  return args.wide ? backward<double>(args) : backward<float>(args);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
