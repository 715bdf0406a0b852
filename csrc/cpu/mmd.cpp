// The maximum mean discrepancy of two samples and its gradients, in one pass over pairs of points.
//
// Blocks of x and of y stand in one row, and every pair of blocks is visited once: x-x and y-y as
// the triangles that they are. Distances are sums of squared differences, not |x|^2 + |y|^2 - 2xy,
// which would cancel for the near points that weigh most.
#include "cpu/kernels.h"
#include "cpu/pairs.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// Both samples by blocks of points: [blocks, dims, kPairCols].
template <class T>
struct Samples {
  Columns x, y;
  int64_t dims, blocks;
  Buffer<T> points;

  explicit Samples(const MmdArgs& args)
      : x(args.x_points),
        y(args.y_points),
        dims(args.dims),
        blocks(x.blocks + y.blocks),
        points(blocks * dims * kPairCols, true) {
    if (points.failed()) return;
    for (int64_t block = 0; block < blocks; ++block) {
      const T* from = static_cast<const T*>(is_x(block) ? args.x : args.y) + first(block) * dims;
      T* to = points.get() + block * dims * kPairCols;
      for (int64_t d = 0; d < dims; ++d)
        for (int64_t l = 0; l < size(block); ++l) to[d * kPairCols + l] = from[l * dims + d];
    }
  }

  bool is_x(int64_t block) const { return block < x.blocks; }
  int64_t first(int64_t block) const {
    return (is_x(block) ? block : block - x.blocks) * kPairCols;
  }
  int64_t size(int64_t block) const {
    return is_x(block) ? x.size(block) : y.size(block - x.blocks);
  }
  int64_t padded(int64_t block) const { return ceil_div(size(block), kPairLanes) * kPairLanes; }
  const T* at(int64_t block) const { return points.get() + block * dims * kPairCols; }
};

// Squared distances of point `row` of one block to the points of another.
template <class T>
void distances(const T* rows, int64_t row, const T* cols, int64_t dims, int64_t width, T* out) {
  for (int64_t l = 0; l < width; ++l) out[l] = T(0);
  int64_t d = 0;
  for (; d + 4 <= dims; d += 4) {
    const T *x = rows + d * kPairCols + row, *y = cols + d * kPairCols;
    const T x0 = x[0], x1 = x[kPairCols], x2 = x[2 * kPairCols], x3 = x[3 * kPairCols];
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      const T t0 = x0 - y[l], t1 = x1 - y[l + kPairCols];
      const T t2 = x2 - y[l + 2 * kPairCols], t3 = x3 - y[l + 3 * kPairCols];
      out[l] = madd(t3, t3, madd(t2, t2, madd(t1, t1, madd(t0, t0, out[l]))));
    }
  }
  for (; d < dims; ++d) {
    const T x0 = rows[d * kPairCols + row];
    const T* y = cols + d * kPairCols;
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      const T t = x0 - y[l];
      out[l] = madd(t, t, out[l]);
    }
  }
}

// Sums over the scales of the kernel and of its derivative in the squared distance.
template <class T>
void imq(const MmdArgs& args, const T* squared, int64_t width, T* value, T* slope) {
  for (int64_t l = 0; l < width; ++l) value[l] = slope[l] = T(0);
  int s = 0;
  // Two scales share a division, which costs as much as ten multiplications.
  for (; s + 2 <= args.scales; s += 2) {
    const T c0 = static_cast<T>(args.scale[s]), c1 = static_cast<T>(args.scale[s + 1]);
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      const T a = c0 + squared[l], b = c1 + squared[l];
      const T inverse = T(1) / (a * b);
      const T r0 = inverse * b, r1 = inverse * a;
      const T k0 = c0 * r0, k1 = c1 * r1;
      value[l] += k0 + k1;
      slope[l] -= madd(k0, r0, k1 * r1);
    }
  }
  if (s < args.scales) {
    const T c = static_cast<T>(args.scale[s]);
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      const T r = T(1) / (c + squared[l]), k = c * r;
      value[l] += k;
      slope[l] = madd(-k, r, slope[l]);
    }
  }
}

template <class T>
void rbf(const MmdArgs& args, const T* squared, int64_t width, T* value, T* slope) {
  for (int64_t l = 0; l < width; ++l) value[l] = slope[l] = T(0);
  for (int s = 0; s < args.scales; ++s) {
    const T rate = static_cast<T>(-kLog2E / args.scale[s]);
    const T inverse = static_cast<T>(1 / args.scale[s]);
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      const T k = exp2(rate * squared[l]);
      value[l] += k;
      slope[l] = madd(-k, inverse, slope[l]);
    }
  }
}

template <class T>
struct Tiles {
  const MmdArgs& args;
  const Samples<T>& samples;
  // [blocks, dims, kPairCols], and one per pair of blocks.
  T* grads;
  double* sums;

  bool wanted(int64_t block) const {
    return (samples.is_x(block) ? args.grad_x : args.grad_y) != nullptr;
  }

  // Twice the factor of a sum that runs over ordered pairs.
  double factor(int64_t a, int64_t b) const {
    if (samples.is_x(a) != samples.is_x(b)) return args.factor_xy;
    return 2 * (samples.is_x(a) ? args.factor_xx : args.factor_yy);
  }

  void tile(int64_t a, int64_t b) const {
    const T *rows = samples.at(a), *cols = samples.at(b);
    const int64_t dims = samples.dims, width = samples.padded(b), size = samples.size(b);
    const bool back = wanted(a) | wanted(b);
    const T twice = static_cast<T>(2 * factor(a, b));
    alignas(64) T slopes[kPairRows * kPairCols], squared[kPairCols], values[kPairCols];
    double total = 0;
    for (int64_t begin = 0; begin < samples.size(a); begin += kPairRows) {
      const int64_t left = samples.size(a) - begin, count = left < kPairRows ? left : kPairRows;
      for (int64_t r = 0; r < count; ++r) {
        T* slope = slopes + r * kPairCols;
        distances(rows, begin + r, cols, dims, width, squared);
        if (args.rbf) {
          rbf(args, squared, width, values, slope);
        } else {
          imq(args, squared, width, values, slope);
        }
        const int64_t from = a == b ? begin + r + 1 : 0;
        for (int64_t l = 0; l < from; ++l) values[l] = slope[l] = T(0);
        for (int64_t l = size; l < width; ++l) values[l] = slope[l] = T(0);
        T sum = T(0);
#pragma omp simd reduction(+ : sum)
        for (int64_t l = 0; l < width; ++l) sum += values[l];
        total += static_cast<double>(sum);
        for (int64_t l = 0; l < width; ++l) slope[l] *= twice;
      }
      if (back)
        for (int64_t d = 0; d < dims; ++d) {
          const int64_t at = d * kPairCols;
          add_dim(rows + at + begin, count, cols + at, slopes, width,
                  grads + a * dims * kPairCols + at + begin, grads + b * dims * kPairCols + at);
        }
    }
    sums[a * samples.blocks + b] = total * factor(a, b);
  }

  // The gradients of some rows and of all columns of a tile in one dimension.
  static void add_dim(const T* x, int64_t count, const T* y, const T* slopes, int64_t width,
                      T* grad_x, T* grad_y) {
    alignas(64) T by_row[kPairRows], by_col[kPairCols] = {};
    int64_t r = 0;
    for (; r + 2 <= count; r += 2) {
      const T x0 = x[r], x1 = x[r + 1];
      const T *s0 = slopes + r * kPairCols, *s1 = s0 + kPairCols;
      T sum0 = T(0), sum1 = T(0);
#pragma omp simd reduction(+ : sum0, sum1)
      for (int64_t l = 0; l < width; ++l) {
        const T g0 = (x0 - y[l]) * s0[l], g1 = (x1 - y[l]) * s1[l];
        sum0 += g0;
        sum1 += g1;
        by_col[l] += g0 + g1;
      }
      by_row[r] = sum0;
      by_row[r + 1] = sum1;
    }
    if (r < count) {
      const T x0 = x[r];
      const T* s0 = slopes + r * kPairCols;
      T sum = T(0);
#pragma omp simd reduction(+ : sum)
      for (int64_t l = 0; l < width; ++l) {
        const T g = (x0 - y[l]) * s0[l];
        sum += g;
        by_col[l] += g;
      }
      by_row[r] = sum;
    }
    for (r = 0; r < count; ++r) grad_x[r] += by_row[r];
    for (int64_t l = 0; l < width; ++l) grad_y[l] -= by_col[l];
  }

  void put(int64_t block) const {
    const int64_t dims = samples.dims;
    void* to = samples.is_x(block) ? args.grad_x : args.grad_y;
    if (to == nullptr) return;
    T* out = static_cast<T*>(to) + samples.first(block) * dims;
    const T* from = grads + block * dims * kPairCols;
    for (int64_t l = 0; l < samples.size(block); ++l)
      for (int64_t d = 0; d < dims; ++d) out[l * dims + d] = from[d * kPairCols + l];
  }
};

template <class T>
bool run(const MmdArgs& args) {
  const Samples<T> samples(args);
  const int64_t blocks = samples.blocks;
  const bool back = (args.grad_x != nullptr) | (args.grad_y != nullptr);
  const Buffer<T> grads(back ? blocks * args.dims * kPairCols : 0, true);
  const Buffer<double> sums(blocks * blocks, true);
  if (samples.points.failed() | grads.failed() | sums.failed()) return false;
  const Tiles<T> tiles{args, samples, grads.get(), sums.get()};
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  {
    // A round's pairs are those with a + b = round (mod blocks): no block is in two of them, so
    // that each block's gradient is added up in the order of the rounds.
    for (int64_t round = 0; round < blocks; ++round) {
#pragma omp for schedule(static, 1)
      for (int64_t a = 0; a < blocks; ++a) {
        const int64_t b = (round - a + blocks) % blocks;
        if (a <= b) tiles.tile(a, b);
      }
    }
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) tiles.put(block);
  }
  double total = args.constant;
  for (int64_t i = 0; i < blocks * blocks; ++i) total += sums[i];
  *static_cast<T*>(args.value) = static_cast<T>(total);
  return true;
}

}  // namespace

bool mmd(const MmdArgs& args) { return args.wide ? run<double>(args) : run<float>(args); }

}  // namespace VAEFAST_ISA
}  // namespace vaefast
