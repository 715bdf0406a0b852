// log sum_k w_k N(z; mu_k, sigma_k^2) and its gradients.
#include "cpu/kernels.h"
#include "cpu/pairs.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// Points that go through the components together: more would leave threads without any.
constexpr int64_t kRows = 8;

template <class T>
bool forward(const GaussianMixtureArgs& args) {
  const Components<T> c(args);
  if (c.failed()) return false;
  const T* z = static_cast<const T*>(args.z);
  T* values = static_cast<T*>(args.values);
#pragma omp parallel for num_threads(args.threads) if (args.threads > 1) schedule(static)
  for (int64_t begin = 0; begin < args.points; begin += kRows) {
    const int64_t left = args.points - begin, rows = left < kRows ? left : kRows;
    alignas(64) T joint[kRows * kPairCols];
    LogSum sums[kRows];
    for (int64_t block = 0; block < c.columns.blocks; ++block) {
      const int64_t width = c.columns.padded(block);
      distance_rows(c, block, width, z + begin * c.dims, rows, joint);
      for (int64_t r = 0; r < rows; ++r)
        sums[r].add(c.total.get() + block * kPairCols, joint + r * kPairCols,
                    static_cast<const T*>(nullptr), width);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const double log2_sum = sums[r].log2();
      args.joint[begin + r] = log2_sum;
      values[begin + r] = static_cast<T>((log2_sum + c.total_top) * kLn2 + args.log_weight);
    }
  }
  return true;
}

// What a tile adds to the sums over points, for one dimension: of g u and g u^2 for each column,
// and of g u rate for each row, where g is the pair's gradient. Two rows share the columns' loads.
template <class T>
void add_dim(const T* z, int64_t stride, int64_t rows, const T* mean, const T* rate, const T* grad,
             int64_t width, T* first, T* second, T* grad_z) {
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) {
    const T z0 = z[r * stride], z1 = z[(r + 1) * stride];
    const T *g0 = grad + r * kPairCols, *g1 = g0 + kPairCols;
    Running<T> total0, total1;
    for (int64_t at = 0; at < width; at += kPairLanes) {
#pragma omp simd
      for (int64_t i = 0; i < kPairLanes; ++i) {
        const int64_t l = at + i;
        const T u0 = (z0 - mean[l]) * rate[l], u1 = (z1 - mean[l]) * rate[l];
        const T gu0 = g0[l] * u0, gu1 = g1[l] * u1;
        first[l] += gu0 + gu1;
        second[l] = madd(gu0, u0, madd(gu1, u1, second[l]));
        total0.lane[i] = madd(gu0, rate[l], total0.lane[i]);
        total1.lane[i] = madd(gu1, rate[l], total1.lane[i]);
      }
    }
    grad_z[r * stride] += total0.total();
    grad_z[(r + 1) * stride] += total1.total();
  }
  for (; r < rows; ++r) {
    const T z0 = z[r * stride];
    const T* g0 = grad + r * kPairCols;
    Running<T> total0;
    for (int64_t at = 0; at < width; at += kPairLanes) {
#pragma omp simd
      for (int64_t i = 0; i < kPairLanes; ++i) {
        const int64_t l = at + i;
        const T u0 = (z0 - mean[l]) * rate[l];
        const T gu0 = g0[l] * u0;
        first[l] += gu0;
        second[l] = madd(gu0, u0, second[l]);
        total0.lane[i] = madd(gu0, rate[l], total0.lane[i]);
      }
    }
    grad_z[r * stride] += total0.total();
  }
}

template <class T>
struct Backward {
  const GaussianMixtureArgs& args;
  const Components<T>& c;
  T *zeroth, *first, *second, *grad_z;

  void tile(int64_t begin, int64_t rows, int64_t block) const {
    const int64_t dims = c.dims, width = c.columns.padded(block);
    const T* z = static_cast<const T*>(args.z) + begin * dims;
    const T* upstream = static_cast<const T*>(args.upstream) + begin;
    const T* total = c.total.get() + block * kPairCols;
    alignas(64) T grad[kPairRows * kPairCols];
    T* sums = zeroth + block * kPairCols;
    distance_rows(c, block, width, z, rows, grad);
    for (int64_t r = 0; r < rows; ++r) {
      T* g = grad + r * kPairCols;
      const Divisor<T> by(args.joint[begin + r]);
      const T shift = by.shift, factor = upstream[r] * by.rest;
#pragma omp simd
      for (int64_t l = 0; l < width; ++l) {
        g[l] = factor * exp2((total[l] - g[l]) - shift);
        sums[l] += g[l];
      }
    }
    for (int64_t d = 0; d < dims; ++d) {
      alignas(64) T s1[kPairCols] = {}, s2[kPairCols] = {};
      const int64_t at = c.at(block, d);
      add_dim(z + d, dims, rows, c.mean.get() + at, c.rate.get() + at, grad, width, s1, s2,
              grad_z + begin * dims + d);
      for (int64_t l = 0; l < width; ++l) {
        first[at + l] += s1[l];
        second[at + l] += s2[l];
      }
    }
  }
};

template <class T>
bool backward(const GaussianMixtureArgs& args) {
  const Components<T> c(args);
  const int64_t cells = c.columns.blocks * c.dims * kPairCols;
  // The sums over points, laid out as the components' means.
  const Buffer<T> zeroth(c.columns.blocks * kPairCols, true), first(cells, true);
  const Buffer<T> second(cells, true), grad_z(args.points * c.dims, true);
  if (c.failed() | zeroth.failed() | first.failed() | second.failed() | grad_z.failed())
    return false;
  const Backward<T> run{args, c, zeroth.get(), first.get(), second.get(), grad_z.get()};
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
  put_gradients(args, c, zeroth.get(), false, first.get(), second.get(), grad_z.get());
  return true;
}

}  // namespace

bool mixture_log_prob(const GaussianMixtureArgs& args) {
  return args.wide ? forward<double>(args) : forward<float>(args);
}

bool mixture_log_prob_backward(const GaussianMixtureArgs& args) {
  return args.wide ? backward<double>(args) : backward<float>(args);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
