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

// Both samples by blocks of points: [blocks, dims, kPairCols]. y comes first: where it takes no
// gradient, as a sample of the prior, its blocks are the rows, whose gradients are dear.
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
#pragma omp parallel for num_threads(args.threads) if (args.threads > 1) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      const T* from = static_cast<const T*>(is_x(block) ? args.x : args.y) + first(block) * dims;
      T* to = points.get() + block * dims * kPairCols;
      for (int64_t d = 0; d < dims; ++d)
        for (int64_t l = 0; l < size(block); ++l) to[d * kPairCols + l] = from[l * dims + d];
    }
  }

  bool is_x(int64_t block) const { return block >= y.blocks; }
  int64_t first(int64_t block) const {
    return (is_x(block) ? block - y.blocks : block) * kPairCols;
  }
  int64_t size(int64_t block) const {
    return is_x(block) ? x.size(block - y.blocks) : y.size(block);
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

// 1/x for 1e-37 < x < 1e37, 1 ulp, by Newton's method: AVX-512 divides 16 floats in 16 cycles, and
// this takes four. NaN stays.
VAEFAST_FN float reciprocal(float x) {
  float y = as_float(0x7ef311c7u - to_bits(x));
  y *= madd(-x, y, 2.0f);
  y *= madd(-x, y, 2.0f);
  return madd(madd(-x, y, 1.0f), y, y);
}

VAEFAST_FN double reciprocal(double x) { return 1.0 / x; }

// sum_s c_s / (c_s + d) over up to four scales as one fraction: one reciprocal for all of them, and
// half the operations of the sum. Every coefficient is positive, so nothing cancels.
template <class T>
struct Fraction {
  static constexpr int kMost = 4;
  int scales = 0;
  // Of numerator, denominator and their derivatives, from the constant up.
  T top[kMost] = {}, bottom[kMost + 1] = {}, top_slope[kMost] = {}, bottom_slope[kMost] = {};

  void set(const double* c, int n) {
    double q[kMost + 1] = {}, p[kMost + 1] = {1};
    for (int i = 0; i < n; ++i) {
      // (q / p) + c / (c + d)
      for (int j = i + 1; j >= 0; --j) {
        q[j] = c[i] * (q[j] + p[j]) + (j > 0 ? q[j - 1] : 0);
        p[j] = c[i] * p[j] + (j > 0 ? p[j - 1] : 0);
      }
    }
    scales = n;
    for (int j = 0; j < n; ++j) {
      top[j] = static_cast<T>(q[j]);
      bottom[j] = static_cast<T>(p[j]);
      top_slope[j] = static_cast<T>(j + 1 < n ? (j + 1) * q[j + 1] : 0);
      bottom_slope[j] = static_cast<T>((j + 1) * p[j + 1]);
    }
    bottom[n] = T(1);
  }
};

template <int n, class T>
VAEFAST_FN T polynomial(const T* coefficients, T x) {
  if constexpr (n == 0) {
    return coefficients[0];
  } else {
    return madd(polynomial<n - 1>(coefficients + 1, x), x, coefficients[0]);
  }
}

template <int n, class T>
void add_fraction(const Fraction<T>& f, const T* squared, int64_t width, T* value, T* slope) {
#pragma omp simd
  for (int64_t l = 0; l < width; ++l) {
    const T d = squared[l];
    const T inverse = reciprocal(polynomial<n>(f.bottom, d));
    const T k = polynomial<n - 1>(f.top, d) * inverse;
    value[l] += k;
    const T down = k * polynomial<n - 1>(f.bottom_slope, d);
    slope[l] = madd((n > 1 ? polynomial<(n > 1 ? n - 2 : 0)>(f.top_slope, d) : T(0)) - down,
                    inverse, slope[l]);
  }
}

// The kernel's scales, in units of the largest, of which `unit` is the inverse.
template <class T>
struct Scales {
  int groups = 0;
  Fraction<T> group[kMaxScales];
  T unit;

  explicit Scales(const MmdArgs& args) {
    double largest = 0;
    for (int s = 0; s < args.scales; ++s)
      largest = args.scale[s] > largest ? args.scale[s] : largest;
    unit = static_cast<T>(1 / largest);
    for (int s = 0; s < args.scales;) {
      // As many as leave the denominator at 0 far from underflow.
      double c[Fraction<T>::kMost], product = 1;
      int n = 0;
      while (n < Fraction<T>::kMost && s < args.scales) {
        c[n] = args.scale[s] / largest;
        product *= c[n];
        if (n > 0 && product < 1e-30) break;
        ++n;
        ++s;
      }
      group[groups++].set(c, n);
    }
  }

  // Sums over the scales of the kernel and of its derivative. Beyond 1e9 of the largest scale the
  // kernel is as good as 0, and the denominator would overflow.
  void add(T* squared, int64_t width, T* value, T* slope) const {
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      const T d = squared[l] * unit;
      squared[l] = d > T(1e9) ? T(1e9) : d;
      value[l] = slope[l] = T(0);
    }
    for (int g = 0; g < groups; ++g) {
      switch (group[g].scales) {
        case 1:
          add_fraction<1>(group[g], squared, width, value, slope);
          break;
        case 2:
          add_fraction<2>(group[g], squared, width, value, slope);
          break;
        case 3:
          add_fraction<3>(group[g], squared, width, value, slope);
          break;
        default:
          add_fraction<4>(group[g], squared, width, value, slope);
      }
    }
  }
};

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
  const Scales<T>& scales;
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
    const int64_t dims = samples.dims, size = samples.size(b);
    const T twice = static_cast<T>(2 * factor(a, b)) * (args.rbf ? T(1) : scales.unit);
    alignas(64) T slopes[kPairRows * kPairCols], squared[kPairCols], values[kPairCols];
    double total = 0;
    for (int64_t begin = 0; begin < samples.size(a); begin += kPairRows) {
      const int64_t left = samples.size(a) - begin, count = left < kPairRows ? left : kPairRows;
      // Of a block with itself, the part below the diagonal is left out.
      const int64_t from = a == b ? begin : 0, width = samples.padded(b) - from;
      const T *rows = samples.at(a) + begin, *cols = samples.at(b) + from;
      for (int64_t r = 0; r < count; ++r) {
        T* slope = slopes + r * kPairCols;
        distances(rows, r, cols, dims, width, squared);
        if (args.rbf) {
          rbf(args, squared, width, values, slope);
        } else {
          scales.add(squared, width, values, slope);
        }
        const int64_t skipped = a == b ? r + 1 : 0;
        for (int64_t l = 0; l < skipped; ++l) values[l] = slope[l] = T(0);
        for (int64_t l = size - from; l < width; ++l) values[l] = slope[l] = T(0);
        T sum = T(0);
#pragma omp simd reduction(+ : sum)
        for (int64_t l = 0; l < width; ++l) {
          sum += values[l];
          slope[l] *= twice;
        }
        total += static_cast<double>(sum);
      }
      if (!(wanted(a) | wanted(b))) continue;
      T* grad_a = grads + a * dims * kPairCols + begin;
      T* grad_b = grads + b * dims * kPairCols + from;
      for (int64_t d = 0; d < dims; ++d) {
        const int64_t at = d * kPairCols;
        const T *row = rows + at, *col = cols + at;
        if (!wanted(a)) {
          add_cols(row, count, col, slopes, width, grad_b + at);
        } else if (!wanted(b)) {
          add_dim<false>(row, count, col, slopes, width, grad_a + at, grad_b + at);
        } else {
          add_dim<true>(row, count, col, slopes, width, grad_a + at, grad_b + at);
        }
      }
    }
    sums[a * samples.blocks + b] = total * factor(a, b);
  }

  // The gradients of a tile's columns in one dimension: no sum across vectors.
  static void add_cols(const T* x, int64_t count, const T* y, const T* slopes, int64_t width,
                       T* grad_y) {
    alignas(64) T by_col[kPairCols] = {};
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) {
      const T x0 = x[r], x1 = x[r + 1], x2 = x[r + 2], x3 = x[r + 3];
      const T *s0 = slopes + r * kPairCols, *s1 = s0 + kPairCols;
      const T *s2 = s1 + kPairCols, *s3 = s2 + kPairCols;
#pragma omp simd
      for (int64_t l = 0; l < width; ++l)
        by_col[l] =
            madd(x0 - y[l], s0[l],
                 madd(x1 - y[l], s1[l], madd(x2 - y[l], s2[l], madd(x3 - y[l], s3[l], by_col[l]))));
    }
    for (; r < count; ++r) {
      const T x0 = x[r];
      const T* s0 = slopes + r * kPairCols;
#pragma omp simd
      for (int64_t l = 0; l < width; ++l) by_col[l] = madd(x0 - y[l], s0[l], by_col[l]);
    }
    for (int64_t l = 0; l < width; ++l) grad_y[l] -= by_col[l];
  }

  // The gradients of some rows and, if wanted, of the columns of a tile in one dimension.
  template <bool kCols>
  static void add_dim(const T* x, int64_t count, const T* y, const T* slopes, int64_t width,
                      T* grad_x, T* grad_y) {
    alignas(64) T by_row[kPairRows], by_col[kPairCols] = {};
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) {
      const T x0 = x[r], x1 = x[r + 1], x2 = x[r + 2], x3 = x[r + 3];
      const T *s0 = slopes + r * kPairCols, *s1 = s0 + kPairCols;
      const T *s2 = s1 + kPairCols, *s3 = s2 + kPairCols;
      T sum0 = T(0), sum1 = T(0), sum2 = T(0), sum3 = T(0);
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
      for (int64_t l = 0; l < width; ++l) {
        const T t0 = x0 - y[l], t1 = x1 - y[l], t2 = x2 - y[l], t3 = x3 - y[l];
        sum0 = madd(t0, s0[l], sum0);
        sum1 = madd(t1, s1[l], sum1);
        sum2 = madd(t2, s2[l], sum2);
        sum3 = madd(t3, s3[l], sum3);
        if constexpr (kCols)
          by_col[l] += madd(t0, s0[l], madd(t1, s1[l], madd(t2, s2[l], t3 * s3[l])));
      }
      by_row[r] = sum0;
      by_row[r + 1] = sum1;
      by_row[r + 2] = sum2;
      by_row[r + 3] = sum3;
    }
    for (; r < count; ++r) {
      const T x0 = x[r];
      const T* s0 = slopes + r * kPairCols;
      T sum = T(0);
#pragma omp simd reduction(+ : sum)
      for (int64_t l = 0; l < width; ++l) {
        const T t = x0 - y[l];
        sum = madd(t, s0[l], sum);
        if constexpr (kCols) by_col[l] = madd(t, s0[l], by_col[l]);
      }
      by_row[r] = sum;
    }
    for (r = 0; r < count; ++r) grad_x[r] += by_row[r];
    if constexpr (kCols)
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
  const Scales<T> scales(args);
  const Tiles<T> tiles{args, samples, scales, grads.get(), sums.get()};
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  {
    // A round's pairs are those with a + b = round (mod blocks): no block is in two of them, so
    // that each block's gradient is added up in the order of the rounds. A block's pair with itself
    // is half the work of another.
    for (int64_t round = 0; round < blocks; ++round) {
      // Those whose sum is `round`, then those whose sum is a turn more.
      const int64_t direct = round / 2 + 1, wrapped = (round + blocks) / 2 - round;
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < direct + wrapped; ++i) {
        const int64_t a = i < direct ? i : round + 1 + (i - direct);
        tiles.tile(a, (round - a + blocks) % blocks);
      }
    }
#pragma omp for schedule(static) nowait
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
