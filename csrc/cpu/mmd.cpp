// The maximum mean discrepancy of two samples and its gradients, in one pass over pairs of points.
//
// Blocks of x and of y stand in one row, and every pair of blocks is visited once: x-x and y-y as
// the triangles that they are.
//
// Distances are |x|^2 + |y|^2 - 2xy where that is as good as a sum of squared differences, and half
// the work; so are the gradients' sums. What cancels there is as large as the largest squared norm
// from the middle of y, and does no harm to a kernel whose smallest scale is not far below that.
// Elsewhere the near points, which weigh most, would lose their digits: differences it is.
#include "cpu/kernels.h"
#include "cpu/pairs.h"
#include "cpu/tile.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// The largest squared norm for which distances are products, in the smallest scale.
constexpr double kProducts = 16;

// Both samples by blocks of points: [blocks, dims, kPairCols]. y comes first: where it takes no
// gradient, as a sample of the prior, its blocks are the rows, whose gradients are dear.
template <class T>
struct Samples {
  Columns x, y;
  int64_t dims, blocks;
  // Whether the points are seen from the middle of y, with their squared norms.
  bool centred = false;
  Buffer<T> points, norms;

  explicit Samples(const MmdArgs& args)
      : x(args.x_points),
        y(args.y_points),
        dims(args.dims),
        blocks(x.blocks + y.blocks),
        points(blocks * dims * kPairCols, true),
        norms(blocks * kPairCols, true) {
    if (failed()) return;
    pack(args);
    double least = kInf;
    for (int s = 0; s < args.scales; ++s) least = args.scale[s] < least ? args.scale[s] : least;
    centred = center(args, kProducts * least);
    if (!centred) pack(args);
  }

  bool failed() const { return points.failed() | norms.failed(); }
  bool is_x(int64_t block) const { return block >= y.blocks; }
  int64_t first(int64_t block) const {
    return (is_x(block) ? block - y.blocks : block) * kPairCols;
  }
  int64_t size(int64_t block) const {
    return is_x(block) ? x.size(block - y.blocks) : y.size(block);
  }
  int64_t padded(int64_t block) const { return ceil_div(size(block), kPairLanes) * kPairLanes; }
  T* at(int64_t block) const { return points.get() + block * dims * kPairCols; }
  const T* norm(int64_t block) const { return norms.get() + block * kPairCols; }

 private:
  void pack(const MmdArgs& args) {
#pragma omp parallel for num_threads(args.threads) if (args.threads > 1) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      const T* from = static_cast<const T*>(is_x(block) ? args.x : args.y) + first(block) * dims;
      T* to = at(block);
      for (int64_t d = 0; d < dims; ++d)
        for (int64_t l = 0; l < size(block); ++l) to[d * kPairCols + l] = from[l * dims + d];
    }
  }

  // Moves the points; true if every squared norm is at most `most` then.
  bool center(const MmdArgs& args, double most) {
    const Buffer<T> middle(dims);
    const Buffer<double> highest(blocks);
    if (middle.failed() | highest.failed()) return false;
    const double count = static_cast<double>(y.count);
    for (int64_t d = 0; d < dims; ++d) {
      double total = 0;
      for (int64_t block = 0; block < y.blocks; ++block)
        total += sum(at(block) + d * kPairCols, y.size(block));
      middle[d] = static_cast<T>(total / count);
    }
#pragma omp parallel for num_threads(args.threads) if (args.threads > 1) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t n = size(block);
      T* norm = norms.get() + block * kPairCols;
      for (int64_t d = 0; d < dims; ++d) {
        T* value = at(block) + d * kPairCols;
        for (int64_t l = 0; l < n; ++l) {
          value[l] -= middle[d];
          norm[l] = madd(value[l], value[l], norm[l]);
        }
      }
      double top = 0;
      // What is NaN is above everything.
      for (int64_t l = 0; l < n; ++l) top = norm[l] <= top ? top : static_cast<double>(norm[l]);
      highest[block] = top;
    }
    bool near = true;
    for (int64_t block = 0; block < blocks; ++block) near &= highest[block] <= most;
    return near;
  }
};

// out[m][l] = sum_k a[k a_k + m a_m] b[k b_k + l], for `count` values of m and `width` of l, both
// kPairCols apart in `out`: in registers, some m and some vectors of l at a time.
template <class T>
class Product {
#if defined(__AVX512F__)
  static constexpr int kBytes = 64, kVectors = 4;
#elif defined(__AVX__)
  static constexpr int kBytes = 32, kVectors = 2;
#else
  static constexpr int kBytes = 16, kVectors = 2;
#endif
  static constexpr int kMost = 4;
  typedef T Vector __attribute__((vector_size(kBytes)));
  static constexpr int64_t kLanes = kBytes / sizeof(T);

 public:
  const T *a, *b;
  int64_t a_k, a_m, b_k, terms;
  T* out;

  void run(int64_t count, int64_t width) const {
    int64_t m = 0;
    for (; m + kMost <= count; m += kMost) row<kMost>(m, width);
    for (; m < count; ++m) row<1>(m, width);
  }

 private:
  template <int kRows>
  void row(int64_t m, int64_t width) const {
    int64_t l = 0;
    for (; l + kVectors * kLanes <= width; l += kVectors * kLanes) block<kRows, kVectors>(m, l);
    for (; l + 2 * kLanes <= width; l += 2 * kLanes) block<kRows, 2>(m, l);
    if (l < width) block<kRows, 1>(m, l);
  }

  template <int kRows, int kCount>
  void block(int64_t m, int64_t l) const {
    Vector sums[kRows][kCount] = {};
    for (int64_t k = 0; k < terms; ++k) {
      Vector right[kCount];
      for (int j = 0; j < kCount; ++j) right[j] = load(b + k * b_k + l + j * kLanes);
      for (int i = 0; i < kRows; ++i) {
        const T left = a[k * a_k + (m + i) * a_m];
        for (int j = 0; j < kCount; ++j) sums[i][j] += right[j] * left;
      }
    }
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kCount; ++j) {
        const Vector sum = sums[i][j];
        memcpy(out + (m + i) * kPairCols + l + j * kLanes, &sum, sizeof sum);
      }
  }

  static Vector load(const T* from) {
    Vector vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
  }
};

// A tile's rows and columns exchanged, four by four: from [rows, kPairCols] to [cols, kPairRows].
template <class T>
void transpose(const T* from, int64_t rows, int64_t cols, T* to) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  for (int64_t r = 0; r < rows; r += 4)
    for (int64_t l = 0; l < cols; l += 4) {
      Four in[4];
      for (int i = 0; i < 4; ++i) memcpy(&in[i], from + (r + i) * kPairCols + l, sizeof in[i]);
      const Four low0 = {in[0][0], in[2][0], in[0][1], in[2][1]};
      const Four low1 = {in[1][0], in[3][0], in[1][1], in[3][1]};
      const Four high0 = {in[0][2], in[2][2], in[0][3], in[2][3]};
      const Four high1 = {in[1][2], in[3][2], in[1][3], in[3][3]};
      const Four out[4] = {{low0[0], low1[0], low0[1], low1[1]},
                           {low0[2], low1[2], low0[3], low1[3]},
                           {high0[0], high1[0], high0[1], high1[1]},
                           {high0[2], high1[2], high0[3], high1[3]}};
      for (int i = 0; i < 4; ++i) memcpy(to + (l + i) * kPairRows + r, &out[i], sizeof out[i]);
    }
}

// Squared distances of a point to those of another block, by differences.
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

// The first fraction finds the squared distances as they are, and leaves them in units of the
// largest scale. Beyond 1e9 of those the kernel is as good as 0, and the denominator would
// overflow.
template <int n, bool kFirst, class T>
void add_fraction(const Fraction<T>& f, T unit, T* squared, int64_t width, T* value, T* slope) {
#pragma omp simd
  for (int64_t l = 0; l < width; ++l) {
    const T raw = kFirst ? squared[l] * unit : squared[l];
    const T d = kFirst && raw > T(1e9) ? T(1e9) : raw;
    const T inverse = reciprocal(polynomial<n>(f.bottom, d));
    const T k = polynomial<n - 1>(f.top, d) * inverse;
    const T down = k * polynomial<n - 1>(f.bottom_slope, d);
    const T up = n > 1 ? polynomial<(n > 1 ? n - 2 : 0)>(f.top_slope, d) : T(0);
    if constexpr (kFirst) {
      squared[l] = d;
      value[l] = k;
      slope[l] = (up - down) * inverse;
    } else {
      value[l] += k;
      slope[l] = madd(up - down, inverse, slope[l]);
    }
  }
}

template <bool kFirst, class T>
void add_fraction(const Fraction<T>& f, T unit, T* squared, int64_t width, T* value, T* slope) {
  switch (f.scales) {
    case 1:
      return add_fraction<1, kFirst>(f, unit, squared, width, value, slope);
    case 2:
      return add_fraction<2, kFirst>(f, unit, squared, width, value, slope);
    case 3:
      return add_fraction<3, kFirst>(f, unit, squared, width, value, slope);
    default:
      return add_fraction<4, kFirst>(f, unit, squared, width, value, slope);
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

  // Sums over the scales of the kernel and of its derivative.
  void add(T* squared, int64_t width, T* value, T* slope) const {
    add_fraction<true>(group[0], unit, squared, width, value, slope);
    for (int g = 1; g < groups; ++g)
      add_fraction<false>(group[g], unit, squared, width, value, slope);
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
    double total = 0;
    for (int64_t begin = 0; begin < samples.size(a); begin += kPairRows) {
      const int64_t left = samples.size(a) - begin;
      Part part;
      part.count = left < kPairRows ? left : kPairRows;
      // Of a block with itself, the part below the diagonal is left out.
      part.diagonal = a == b;
      const int64_t from = part.diagonal ? begin : 0;
      part.size = samples.size(b) - from;
      part.width = samples.padded(b) - from;
      part.rows = samples.at(a) + begin;
      part.cols = samples.at(b) + from;
      if (samples.centred) {
        products(part, samples.norm(a) + begin, samples.norm(b) + from);
      } else {
        for (int64_t r = 0; r < part.count; ++r)
          distances(part.rows, r, part.cols, samples.dims, part.width,
                    part.squared + r * kPairCols);
      }
      for (int64_t r = 0; r < part.count; ++r) total += evaluate(part, r);
      T* grad_a = wanted(a) ? grads + a * samples.dims * kPairCols + begin : nullptr;
      T* grad_b = wanted(b) ? grads + b * samples.dims * kPairCols + from : nullptr;
      if (grad_a == nullptr && grad_b == nullptr) continue;
      const T factor_of = static_cast<T>(2 * factor(a, b)) * (args.rbf ? T(1) : scales.unit);
      if (samples.centred) {
        add_products(part, factor_of, grad_a, grad_b);
      } else {
        add_differences(part, factor_of, grad_a, grad_b);
      }
    }
    sums[a * samples.blocks + b] = total * factor(a, b);
  }

  // Some rows of a tile: its points, distances and slopes, and the slopes' sums.
  struct Part {
    int64_t count, size, width;
    bool diagonal;
    const T *rows, *cols;
    alignas(64) T squared[kPairRows * kPairCols], slopes[kPairRows * kPairCols];
    alignas(64) T by_row[kPairRows], by_col[kPairCols] = {};
  };

  void products(Part& part, const T* row_norm, const T* col_norm) const {
    Product<T>{part.rows, part.cols, kPairCols, 1, kPairCols, samples.dims, part.squared}.run(
        part.count, part.width);
    for (int64_t r = 0; r < part.count; ++r) {
      T* squared = part.squared + r * kPairCols;
      const T norm = row_norm[r];
      for (int64_t l = 0; l < part.width; ++l) {
        const T d = madd(T(-2), squared[l], norm + col_norm[l]);
        squared[l] = d < T(0) ? T(0) : d;
      }
    }
  }

  // The kernel of a row's pairs, summed; its slopes are left in the part.
  double evaluate(Part& part, int64_t r) const {
    alignas(64) T values[kPairCols];
    T* slope = part.slopes + r * kPairCols;
    if (args.rbf) {
      rbf(args, part.squared + r * kPairCols, part.width, values, slope);
    } else {
      scales.add(part.squared + r * kPairCols, part.width, values, slope);
    }
    const int64_t skipped = part.diagonal ? r + 1 : 0;
    for (int64_t l = 0; l < skipped; ++l) values[l] = slope[l] = T(0);
    for (int64_t l = part.size; l < part.width; ++l) values[l] = slope[l] = T(0);
    Running<T> value, row;
    for (int64_t at = 0; at < part.width; at += kPairLanes) {
#pragma omp simd
      for (int64_t i = 0; i < kPairLanes; ++i) {
        value.lane[i] += values[at + i];
        row.lane[i] += slope[at + i];
        part.by_col[at + i] += slope[at + i];
      }
    }
    part.by_row[r] = row.total();
    return static_cast<double>(value.total());
  }

  // The gradients of some rows and columns: sum_l s (x - y) = x sum_l s - sum_l s y.
  void add_products(Part& part, T factor, T* grad_a, T* grad_b) const {
    alignas(64) T sums[kPairRows * kPairCols], turned[kPairCols * kPairRows];
    const int64_t rows = ceil_div(part.count, kPairLanes) * kPairLanes;
    if (grad_a != nullptr) {
      memset(static_cast<void*>(part.slopes + part.count * kPairCols), 0,
             static_cast<size_t>((rows - part.count) * kPairCols) * sizeof(T));
      transpose(part.slopes, rows, part.width, turned);
    }
    for (int64_t d = 0; d < samples.dims; d += kPairRows) {
      const int64_t left = samples.dims - d, count = left < kPairRows ? left : kPairRows;
      const T *row = part.rows + d * kPairCols, *col = part.cols + d * kPairCols;
      if (grad_b != nullptr) {
        Product<T>{row, part.slopes, 1, kPairCols, kPairCols, part.count, sums}.run(count,
                                                                                    part.width);
        add_moments(count, part.width, col, part.by_col, sums, factor, grad_b + d * kPairCols);
      }
      if (grad_a != nullptr) {
        Product<T>{col, turned, 1, kPairCols, kPairRows, part.width, sums}.run(count, rows);
        add_moments(count, part.count, row, part.by_row, sums, factor, grad_a + d * kPairCols);
      }
    }
  }

  // grad += factor (point total - sum), for each dimension.
  static void add_moments(int64_t dims, int64_t width, const T* points, const T* totals,
                          const T* sums, T factor, T* grad) {
    for (int64_t d = 0; d < dims; ++d) {
      const int64_t at = d * kPairCols;
#pragma omp simd
      for (int64_t l = 0; l < width; ++l)
        grad[at + l] = madd(factor, points[at + l] * totals[l] - sums[at + l], grad[at + l]);
    }
  }

  void add_differences(const Part& part, T factor, T* grad_a, T* grad_b) const {
    for (int64_t d = 0; d < samples.dims; ++d) {
      const int64_t at = d * kPairCols;
      const T *row = part.rows + at, *col = part.cols + at;
      if (grad_a == nullptr) {
        add_cols(row, part.count, col, part.slopes, part.width, factor, grad_b + at);
      } else if (grad_b == nullptr) {
        add_dim<false>(row, part.count, col, part.slopes, part.width, factor, grad_a + at, grad_b);
      } else {
        add_dim<true>(row, part.count, col, part.slopes, part.width, factor, grad_a + at,
                      grad_b + at);
      }
    }
  }

  // The gradients of a tile's columns in one dimension: no sum across vectors.
  static void add_cols(const T* x, int64_t count, const T* y, const T* slopes, int64_t width,
                       T factor, T* grad_y) {
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
    for (int64_t l = 0; l < width; ++l) grad_y[l] = madd(-factor, by_col[l], grad_y[l]);
  }

  // The gradients of some rows and, if wanted, of the columns of a tile in one dimension.
  template <bool kCols>
  static void add_dim(const T* x, int64_t count, const T* y, const T* slopes, int64_t width,
                      T factor, T* grad_x, T* grad_y) {
    alignas(64) T by_row[kPairRows], by_col[kPairCols] = {};
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) {
      const T x0 = x[r], x1 = x[r + 1], x2 = x[r + 2], x3 = x[r + 3];
      const T *s0 = slopes + r * kPairCols, *s1 = s0 + kPairCols;
      const T *s2 = s1 + kPairCols, *s3 = s2 + kPairCols;
      Running<T> sum0, sum1, sum2, sum3;
      for (int64_t at = 0; at < width; at += kPairLanes) {
#pragma omp simd
        for (int64_t i = 0; i < kPairLanes; ++i) {
          const int64_t l = at + i;
          const T t0 = x0 - y[l], t1 = x1 - y[l], t2 = x2 - y[l], t3 = x3 - y[l];
          sum0.lane[i] = madd(t0, s0[l], sum0.lane[i]);
          sum1.lane[i] = madd(t1, s1[l], sum1.lane[i]);
          sum2.lane[i] = madd(t2, s2[l], sum2.lane[i]);
          sum3.lane[i] = madd(t3, s3[l], sum3.lane[i]);
          if constexpr (kCols)
            by_col[l] += madd(t0, s0[l], madd(t1, s1[l], madd(t2, s2[l], t3 * s3[l])));
        }
      }
      by_row[r] = sum0.total();
      by_row[r + 1] = sum1.total();
      by_row[r + 2] = sum2.total();
      by_row[r + 3] = sum3.total();
    }
    for (; r < count; ++r) {
      const T x0 = x[r];
      const T* s0 = slopes + r * kPairCols;
      Running<T> sum;
      for (int64_t at = 0; at < width; at += kPairLanes) {
#pragma omp simd
        for (int64_t i = 0; i < kPairLanes; ++i) {
          const int64_t l = at + i;
          const T t = x0 - y[l];
          sum.lane[i] = madd(t, s0[l], sum.lane[i]);
          if constexpr (kCols) by_col[l] = madd(t, s0[l], by_col[l]);
        }
      }
      by_row[r] = sum.total();
    }
    for (r = 0; r < count; ++r) grad_x[r] = madd(factor, by_row[r], grad_x[r]);
    if constexpr (kCols)
      for (int64_t l = 0; l < width; ++l) grad_y[l] = madd(-factor, by_col[l], grad_y[l]);
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

// Every pair of blocks a <= b, in rounds: those with a + b = round (mod blocks). No block is in two
// pairs of a round, so that each block's gradient is added up in the order of the rounds. Within a
// round the longest come first, for threads that take one after the other.
class Order {
 public:
  template <class T>
  explicit Order(const Tiles<T>& tiles)
      : blocks_(tiles.samples.blocks), firsts_(blocks_ * (blocks_ + 1) / 2) {
    if (failed()) return;
    int64_t* next = firsts_.get();
    for (int64_t round = 0; round < blocks_; ++round)
      for (int cost = 8; cost >= 2; --cost)
        for (int64_t a = 0; a < blocks_; ++a) {
          const int64_t b = partner(round, a);
          const int each = 2 + (tiles.wanted(a) ? 1 : 0) + (tiles.wanted(b) ? 1 : 0);
          // A block's pair with itself is half the work of another.
          if (a <= b && (a == b ? each : 2 * each) == cost) *next++ = a;
        }
  }

  bool failed() const { return firsts_.failed(); }
  int64_t pairs(int64_t round) const { return blocks_ / 2 + (blocks_ % 2 == 1 || round % 2 == 0); }
  int64_t first(int64_t round, int64_t i) const {
    // Even rounds of an even number of blocks have a pair more: two blocks meet themselves.
    const int64_t more = blocks_ % 2 == 1 ? round : (round + 1) / 2;
    return firsts_[round * (blocks_ / 2) + more + i];
  }
  int64_t partner(int64_t round, int64_t a) const { return (round - a + blocks_) % blocks_; }

 private:
  int64_t blocks_;
  Buffer<int64_t> firsts_;
};

template <class T>
bool run(const MmdArgs& args) {
  const Samples<T> samples(args);
  const int64_t blocks = samples.blocks;
  const bool back = (args.grad_x != nullptr) | (args.grad_y != nullptr);
  const Buffer<T> grads(back ? blocks * args.dims * kPairCols : 0, true);
  const Buffer<double> sums(blocks * blocks, true);
  const Scales<T> scales(args);
  const Tiles<T> tiles{args, samples, scales, grads.get(), sums.get()};
  const Order order(tiles);
  if (samples.failed() | grads.failed() | sums.failed() | order.failed()) return false;
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  {
    for (int64_t round = 0; round < blocks; ++round) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < order.pairs(round); ++i) {
        const int64_t a = order.first(round, i);
        tiles.tile(a, order.partner(round, a));
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
