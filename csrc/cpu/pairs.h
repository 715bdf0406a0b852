// Points against points in tiles that stay in the L1 cache: what the kernels over pairs share.
//
// The columns of a tile are consecutive in memory for each dimension, so that a plain loop over
// them is vector instructions. Tiles are fixed by the shape alone, and so is the order in which
// their results are added up: the bits do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "core/pairs.h"
#include "math/bounded.h"
#include "math/gaussian.h"

namespace vaefast {
namespace VAEFAST_ISA {

// A float tile of rows x columns is 16 KB, a third of an L1 cache.
constexpr int64_t kPairRows = 32, kPairCols = 128;
// Columns are padded to whole vectors of AVX-512.
constexpr int64_t kPairLanes = 16;

VAEFAST_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Numbers that run side by side over a tile's columns, whole vectors of them. `omp simd reduction`
// takes a vector's lanes one after the other, which is longer than the loop before it: here they
// are halved until one is left.
template <class T>
struct alignas(64) Running {
  typedef T Half __attribute__((vector_size(kPairLanes / 2 * sizeof(T))));
  typedef T Quarter __attribute__((vector_size(kPairLanes / 4 * sizeof(T))));

  T lane[kPairLanes] = {};

  T total() const {
    const Quarter four = quarter([](const auto& a, const auto& b) { return a + b; });
    return (four[0] + four[2]) + (four[1] + four[3]);
  }
  T highest() const {
    const Quarter four = quarter([](const auto& a, const auto& b) { return a > b ? a : b; });
    const T even = four[0] > four[2] ? four[0] : four[2];
    const T odd = four[1] > four[3] ? four[1] : four[3];
    return even > odd ? even : odd;
  }

 private:
  template <class F>
  Quarter quarter(const F& join) const {
    Half half[2];
    memcpy(half, lane, sizeof half);
    const Half eight = join(half[0], half[1]);
    Quarter four[2];
    memcpy(four, &eight, sizeof four);
    return join(four[0], four[1]);
  }
};

// Elements from the heap, on a cache line; no std::vector, whose weak symbols would be shared
// between instruction sets.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n, bool zeroed = false) {
    const size_t bytes = (static_cast<size_t>(n > 0 ? n : 1) * sizeof(T) + 63) / 64 * 64;
    memory_ = malloc(bytes + 64);
    if (memory_ == nullptr) return;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory_) + 63) / 64 * 64;
    data_ = reinterpret_cast<T*>(begin);
    if (zeroed) memset(static_cast<void*>(data_), 0, bytes);
  }
  ~Buffer() { free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  bool failed() const { return data_ == nullptr; }

 private:
  void* memory_ = nullptr;
  T* data_ = nullptr;
};

// Columns cut into blocks; the last one is padded to whole vectors.
struct Columns {
  int64_t count, blocks;

  explicit Columns(int64_t n) : count(n), blocks(ceil_div(n, kPairCols)) {}
  int64_t size(int64_t block) const {
    const int64_t left = count - block * kPairCols;
    return left < kPairCols ? left : kPairCols;
  }
  int64_t padded(int64_t block) const { return ceil_div(size(block), kPairLanes) * kPairLanes; }
};

// A grid of tiles in rounds. The parts of a round share neither rows nor columns, so that threads
// add to both without a lock, each place in the order of the rounds. Few rounds: a thread that
// waits at the end of one for another that lost its core waits long.
struct Rounds {
  int64_t row_blocks, col_blocks, count;

  Rounds(int64_t rows, int64_t cols) : row_blocks(rows), col_blocks(cols) {
    const int64_t fewer = rows < cols ? rows : cols;
    count = fewer < 64 ? fewer : 64;
  }

  // Calls tile(row_block, col_block) for every tile of part `part` of a round.
  template <class Tile>
  void visit(int64_t round, int64_t part, const Tile& tile) const {
    const int64_t rows = (part + round) % count;
    for (int64_t col = part * col_blocks / count; col < (part + 1) * col_blocks / count; ++col)
      for (int64_t row = rows * row_blocks / count; row < (rows + 1) * row_blocks / count; ++row)
        tile(row, col);
  }
};

// Diagonal Gaussians by blocks of columns, in base 2: log2 N(z; mu, sigma^2) over one dimension is
// top + peak - ((z - mu) rate)^2. `top` is the dimension's largest, so that every exponent is at
// most 0 and the sum of a dimension needs no search for its maximum.
template <class T>
class Components {
 public:
  explicit Components(const GaussianMixtureArgs& args)
      : columns(args.components),
        dims(args.dims),
        mean(columns.blocks * dims * kPairCols, true),
        rate(columns.blocks * dims * kPairCols, true),
        peak(columns.blocks * dims * kPairCols),
        total(columns.blocks * kPairCols),
        top(dims),
        sums(columns.blocks * kPairCols) {
    if (failed()) return;
    const T* mu = static_cast<const T*>(args.mu);
    const T* logvar = static_cast<const T*>(args.logvar);
    const T* weights = static_cast<const T*>(args.log_weights);
    find_tops(logvar);
#pragma omp parallel for num_threads(args.threads) if (args.threads > 1) schedule(static)
    for (int64_t block = 0; block < columns.blocks; ++block) fill(block, mu, logvar, weights);
    center();
  }

  bool failed() const {
    return mean.failed() | rate.failed() | peak.failed() | total.failed() | top.failed() |
           sums.failed();
  }
  int64_t at(int64_t block, int64_t dim) const { return (block * dims + dim) * kPairCols; }

  const Columns columns;
  const int64_t dims;
  // [blocks, dims, kPairCols]; the padding has density 0.
  const Buffer<T> mean, rate, peak;
  // The sum of top + peak over the dimensions, with the component's weight, less `total_top`, the
  // largest of them: [blocks, kPairCols].
  const Buffer<T> total;
  const Buffer<double> top;
  double total_top = 0;

 private:
  const Buffer<double> sums;

  void find_tops(const T* logvar) {
    T* least = mean.get();
    for (int64_t d = 0; d < dims; ++d) least[d] = columns.count > 0 ? logvar[d] : T(0);
    for (int64_t j = 1; j < columns.count; ++j) {
      const T* row = logvar + j * dims;
      for (int64_t d = 0; d < dims; ++d) least[d] = row[d] < least[d] ? row[d] : least[d];
    }
    for (int64_t d = 0; d < dims; ++d)
      top[d] = -0.5 * kLog2E * (static_cast<double>(least[d]) + kLog2Pi);
    memset(static_cast<void*>(least), 0, static_cast<size_t>(dims) * sizeof(T));
  }

  void fill(int64_t block, const T* mu, const T* logvar, const T* weights) {
    const int64_t first = block * kPairCols, size = columns.size(block);
    double* sum = sums.get() + first;
    for (int64_t l = 0; l < kPairCols; ++l) sum[l] = l < size ? 0 : -kInf;
    if (weights != nullptr)
      for (int64_t l = 0; l < size; ++l) sum[l] = kLog2E * static_cast<double>(weights[first + l]);
    for (int64_t d = 0; d < dims; ++d) {
      T* m = mean.get() + at(block, d);
      T* r = rate.get() + at(block, d);
      T* p = peak.get() + at(block, d);
      T own[kPairCols];
      for (int64_t l = 0; l < size; ++l) {
        m[l] = mu[(first + l) * dims + d];
        own[l] = logvar[(first + l) * dims + d];
      }
      const double highest = top[d];
      for (int64_t l = 0; l < size; ++l) {
        r[l] = rate_of(own[l]);
        const double log2_peak = -0.5 * kLog2E * (static_cast<double>(own[l]) + kLog2Pi);
        p[l] = static_cast<T>(log2_peak - highest);
        sum[l] += log2_peak;
      }
      for (int64_t l = size; l < kPairCols; ++l) p[l] = T(-kInf);
    }
  }

  void center() {
    const int64_t n = columns.blocks * kPairCols;
    double highest = -kInf;
    for (int64_t j = 0; j < n; ++j) highest = sums[j] > highest ? sums[j] : highest;
    // Where every weight is 0 there is nothing to be near.
    total_top = highest > -kInf ? highest : 0;
    for (int64_t j = 0; j < n; ++j) total[j] = static_cast<T>(sums[j] - total_top);
  }
};

// u^2 summed over the dimensions, for some points z [rows, dims] and each component of a block:
// out [rows, kPairCols]. Four dimensions at a time: the running sums stay in registers for as long,
// fewer terms are added to them, and the components' share of the L1 cache is small. Two points
// share its loads.
template <class T>
static void distance_rows(const Components<T>& c, int64_t block, int64_t width, const T* z,
                          int64_t rows, T* out) {
  memset(static_cast<void*>(out), 0, static_cast<size_t>(rows * kPairCols) * sizeof(T));
  int64_t d = 0;
  for (; d + 4 <= c.dims; d += 4) {
    const T* m = c.mean.get() + c.at(block, d);
    const T* s = c.rate.get() + c.at(block, d);
    for (int64_t r = 0; r < rows; r += 2) {
      // The last of an odd number of points is done twice over.
      const int64_t other = r + 1 < rows ? r + 1 : r;
      const T *x = z + r * c.dims + d, *y = z + other * c.dims + d;
      const T x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
      const T y0 = y[0], y1 = y[1], y2 = y[2], y3 = y[3];
      T *to_x = out + r * kPairCols, *to_y = out + other * kPairCols;
#pragma omp simd
      for (int64_t l = 0; l < width; ++l) {
        const T m0 = m[l], m1 = m[l + kPairCols], m2 = m[l + 2 * kPairCols];
        const T m3 = m[l + 3 * kPairCols];
        const T s0 = s[l], s1 = s[l + kPairCols], s2 = s[l + 2 * kPairCols];
        const T s3 = s[l + 3 * kPairCols];
        const T u0 = (x0 - m0) * s0, u1 = (x1 - m1) * s1, u2 = (x2 - m2) * s2, u3 = (x3 - m3) * s3;
        const T v0 = (y0 - m0) * s0, v1 = (y1 - m1) * s1, v2 = (y2 - m2) * s2, v3 = (y3 - m3) * s3;
        const T next_x = to_x[l] + madd(u3, u3, madd(u2, u2, madd(u1, u1, u0 * u0)));
        const T next_y = to_y[l] + madd(v3, v3, madd(v2, v2, madd(v1, v1, v0 * v0)));
        to_x[l] = next_x;
        to_y[l] = next_y;
      }
    }
  }
  for (; d < c.dims; ++d) {
    const T* m = c.mean.get() + c.at(block, d);
    const T* s = c.rate.get() + c.at(block, d);
    for (int64_t r = 0; r < rows; ++r) {
      const T x = z[r * c.dims + d];
      T* to = out + r * kPairCols;
#pragma omp simd
      for (int64_t l = 0; l < width; ++l) {
        const T u = (x - m[l]) * s[l];
        to[l] = madd(u, u, to[l]);
      }
    }
  }
}

// A running sum of powers of two under a common, rising exponent.
struct LogSum {
  double top = -kInf, sum = 0;

  // Adds weight[l] 2^(total[l] - x[l]), with the exponents left in x; no weights: 1.
  template <class T>
  void add(const T* total, T* x, const T* weight, int64_t width) {
    Running<T> tops;
    for (T& lane : tops.lane) lane = T(-kInf);
    for (int64_t at = 0; at < width; at += kPairLanes) {
#pragma omp simd
      for (int64_t l = 0; l < kPairLanes; ++l) {
        const T value = total[at + l] - x[at + l], before = tops.lane[l];
        x[at + l] = value;
        tops.lane[l] = value > before ? value : before;
      }
    }
    const double here = static_cast<double>(tops.highest());
    if (here > top) {
      sum *= exp2(top - here);
      top = here;
    }
    // -inf - -inf would be NaN; with 0 in its place each term is 2^-inf = 0.
    const T shift = top > -kInf ? static_cast<T>(top) : T(0);
    Running<T> here_sum;
    for (int64_t at = 0; at < width; at += kPairLanes) {
      if (weight != nullptr) {
        for (int64_t l = 0; l < kPairLanes; ++l)
          here_sum.lane[l] += exp2(x[at + l] - shift) * weight[at + l];
      } else {
        for (int64_t l = 0; l < kPairLanes; ++l) here_sum.lane[l] += exp2(x[at + l] - shift);
      }
    }
    sum += static_cast<double>(here_sum.total());
  }

  double log2() const { return (top > -kInf ? top : 0) + kLog2E * log(sum); }
};

// The gradients from the sums over pairs of g, g u and g u^2, laid out as the components' means
// (`zeroth` with one value per component unless `per_dim`), and of g u rate for each point. With
// t = z - mu: t / sigma^2 = 2 ln2 u rate, and t^2 / sigma^2 = 2 ln2 u^2.
template <class T>
static void put_gradients(const GaussianMixtureArgs& args, const Components<T>& c, const T* zeroth,
                          bool per_dim, const T* first, const T* second, const T* sums_z) {
  const int64_t dims = c.dims;
  T *grad_z = static_cast<T*>(args.grad_z), *grad_mu = static_cast<T*>(args.grad_mu);
  T* grad_logvar = static_cast<T*>(args.grad_logvar);
  T* grad_weights = static_cast<T*>(args.grad_log_weights);
  for (int64_t i = 0; i < args.points * dims; ++i) grad_z[i] = T(-2 * kLn2) * sums_z[i];
#pragma omp parallel for num_threads(args.threads) if (args.threads > 1) schedule(static)
  for (int64_t block = 0; block < c.columns.blocks; ++block) {
    const int64_t begin = block * kPairCols, size = c.columns.size(block);
    for (int64_t d = 0; d < dims; ++d) {
      const int64_t at = c.at(block, d), from = per_dim ? at : begin;
      for (int64_t l = 0; l < size; ++l) {
        const int64_t to = (begin + l) * dims + d;
        grad_mu[to] = T(2 * kLn2) * first[at + l] * c.rate[at + l];
        grad_logvar[to] = T(kLn2) * second[at + l] - T(0.5) * zeroth[from + l];
      }
    }
    if (grad_weights != nullptr)
      for (int64_t l = 0; l < size; ++l) grad_weights[begin + l] = zeroth[begin + l];
  }
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
