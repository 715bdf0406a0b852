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
    const Buffer<int32_t> beyond(blocks);
    if (middle.failed() | beyond.failed()) return false;
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
      // So is what is NaN.
      int32_t found = 0;
      for (int64_t l = 0; l < n; ++l) found |= static_cast<double>(norm[l]) <= most ? 0 : 1;
      beyond[block] = found;
    }
    int32_t found = 0;
    for (int64_t block = 0; block < blocks; ++block) found |= beyond[block];
    return found == 0;
  }
};

// Vectors as wide as the instruction set's.
template <class T>
struct Wide {
#if defined(__AVX512F__)
  static constexpr int kBytes = 64, kVectors = 4;
#elif defined(__AVX__)
  static constexpr int kBytes = 32, kVectors = 2;
#else
  static constexpr int kBytes = 16, kVectors = 2;
#endif
  typedef T Vector __attribute__((vector_size(kBytes)));
  static constexpr int64_t kLanes = kBytes / sizeof(T);

  static Vector load(const T* from) {
    Vector vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
  }
  static void store(const Vector& vector, T* to) { memcpy(to, &vector, sizeof vector); }
};

// sum_k a[k a_k + m a_m] b[k b_k + l] for `count` values of m and `width` of l, in registers, some
// m and some vectors of l at a time. `take(m, l, sums)` gets a vector of them.
template <class T>
struct Product {
  using W = Wide<T>;
  using Vector = typename W::Vector;

  const T *a, *b;
  int64_t a_k, a_m, b_k, terms;

  template <class Take>
  void run(int64_t count, int64_t width, const Take& take) const {
    constexpr int kMost = 4;
    int64_t m = 0;
    for (; m + kMost <= count; m += kMost) rows<kMost>(m, width, take);
    for (; m < count; ++m) rows<1>(m, width, take);
  }

 private:
  template <int kRows, class Take>
  void rows(int64_t m, int64_t width, const Take& take) const {
    constexpr int64_t kMost = W::kVectors * W::kLanes, kPair = 2 * W::kLanes;
    int64_t l = 0;
    for (; l + kMost <= width; l += kMost) block<kRows, W::kVectors>(m, l, take);
    for (; l + kPair <= width; l += kPair) block<kRows, 2>(m, l, take);
    if (l < width) block<kRows, 1>(m, l, take);
  }

  template <int kRows, int kCount, class Take>
  void block(int64_t m, int64_t l, const Take& take) const {
    Vector sums[kRows][kCount] = {};
    for (int64_t k = 0; k < terms; ++k) {
      Vector right[kCount];
      for (int j = 0; j < kCount; ++j) right[j] = W::load(b + k * b_k + l + j * W::kLanes);
      for (int i = 0; i < kRows; ++i) {
        const T left = a[k * a_k + (m + i) * a_m];
        for (int j = 0; j < kCount; ++j) sums[i][j] += right[j] * left;
      }
    }
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kCount; ++j) take(m + i, l + j * W::kLanes, sums[i][j]);
  }
};

// The elements of two vectors in turn: of their lower halves, or of their upper ones.
template <bool kUpper, class Four>
VAEFAST_FN Four interleave(const Four& a, const Four& b) {
#if defined(__clang__)
  return kUpper ? __builtin_shufflevector(a, b, 2, 6, 3, 7)
                : __builtin_shufflevector(a, b, 0, 4, 1, 5);
#else
  typedef decltype(a < b) Places;
  return __builtin_shuffle(a, b, kUpper ? Places{2, 6, 3, 7} : Places{0, 4, 1, 5});
#endif
}

// A tile's rows and columns exchanged, four by four: from [rows, kPairCols] to [cols, kPairRows].
template <class T>
void transpose(const T* from, int64_t rows, int64_t cols, T* to) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  for (int64_t l = 0; l < cols; l += 4)
    for (int64_t r = 0; r < rows; r += 4) {
      Four in[4];
      for (int i = 0; i < 4; ++i) memcpy(&in[i], from + (r + i) * kPairCols + l, sizeof in[i]);
      const Four a = interleave<false>(in[0], in[2]), b = interleave<false>(in[1], in[3]);
      const Four c = interleave<true>(in[0], in[2]), d = interleave<true>(in[1], in[3]);
      const Four out[4] = {interleave<false>(a, b), interleave<true>(a, b), interleave<false>(c, d),
                           interleave<true>(c, d)};
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

// sum_s c_s / (c_s + d) over some scales as one fraction, and the derivative, less its sign, as
// another: one reciprocal for all of them. Every coefficient is positive, so nothing cancels.
template <class T>
struct Fraction {
  static constexpr int kMost = 8;
  int scales = 0;
  // top / bottom and steep / bottom^2, from the constant up.
  T top[kMost] = {}, bottom[kMost + 1] = {}, steep[2 * kMost - 1] = {};

  void set(const double* c, int n) {
    double q[kMost + 1] = {}, p[kMost + 1] = {1}, r[2 * kMost + 1] = {};
    for (int i = 0; i < n; ++i) {
      // r / p^2 + c / (c + d)^2, then q / p + c / (c + d).
      double square[2 * kMost + 1] = {};
      for (int j = 0; j <= i; ++j)
        for (int k = 0; k <= i; ++k) square[j + k] += p[j] * p[k];
      for (int j = 2 * i; j >= 0; --j)
        r[j] =
            c[i] * (c[i] * r[j] + (j > 0 ? 2 * r[j - 1] : 0) + square[j]) + (j > 1 ? r[j - 2] : 0);
      for (int j = i + 1; j >= 0; --j) {
        q[j] = c[i] * (q[j] + p[j]) + (j > 0 ? q[j - 1] : 0);
        p[j] = c[i] * p[j] + (j > 0 ? p[j - 1] : 0);
      }
    }
    scales = n;
    for (int j = 0; j < n; ++j) top[j] = static_cast<T>(q[j]);
    for (int j = 0; j <= n; ++j) bottom[j] = static_cast<T>(p[j]);
    for (int j = 0; j < 2 * n - 1; ++j) steep[j] = static_cast<T>(r[j]);
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
    const T down = polynomial<2 * n - 2>(f.steep, d) * (inverse * inverse);
    if constexpr (kFirst) {
      squared[l] = d;
      value[l] = k;
      slope[l] = -down;
    } else {
      value[l] += k;
      slope[l] -= down;
    }
  }
}

template <bool kFirst, class T, int n = Fraction<T>::kMost>
void add_group(const Fraction<T>& f, T unit, T* squared, int64_t width, T* value, T* slope) {
  if (f.scales == n) {
    add_fraction<n, kFirst>(f, unit, squared, width, value, slope);
  } else if constexpr (n > 1) {
    add_group<kFirst, T, n - 1>(f, unit, squared, width, value, slope);
  }
}

// The kernel's scales, in units of the largest, of which `unit` is the inverse.
template <class T>
struct Scales {
  int groups = 0;
  Fraction<T> group[kMaxScales];
  T unit;

  // `near`: no squared distance is above 64 times the smallest scale, as between centred points.
  Scales(const MmdArgs& args, bool near) {
    // So many scales keep a denominator's square far from overflow, and their product in units of
    // the largest keeps it from underflow.
    const int most = near ? Fraction<T>::kMost : 2;
    double largest = 0;
    for (int s = 0; s < args.scales; ++s)
      largest = args.scale[s] > largest ? args.scale[s] : largest;
    unit = static_cast<T>(1 / largest);
    for (int s = 0; s < args.scales;) {
      double c[Fraction<T>::kMost], product = 1;
      int n = 0;
      while (n < most && s < args.scales) {
        c[n] = args.scale[s] / largest;
        product *= c[n];
        if (n > 0 && product < 1e-15) break;
        ++n;
        ++s;
      }
      group[groups++].set(c, n);
    }
  }

  // Sums over the scales of the kernel and of its derivative.
  void add(T* squared, int64_t width, T* value, T* slope) const {
    add_group<true>(group[0], unit, squared, width, value, slope);
    for (int g = 1; g < groups; ++g) add_group<false>(group[g], unit, squared, width, value, slope);
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
  using W = Wide<T>;
  using Vector = typename W::Vector;

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
    Doubles total = {};
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
    sums[a * samples.blocks + b] = sum_lanes(total) * factor(a, b);
  }

  // Some rows of a tile: its points, distances and slopes, and the slopes' sums over the rows.
  struct Part {
    int64_t count, size, width;
    bool diagonal;
    const T *rows, *cols;
    alignas(64) T squared[kPairRows * kPairCols], slopes[kPairRows * kPairCols];
    alignas(64) T by_col[kPairCols] = {};
  };

  void products(Part& part, const T* row_norm, const T* col_norm) const {
    const Product<T> product{part.rows, part.cols, kPairCols, 1, kPairCols, samples.dims};
    product.run(part.count, part.width, [&](int64_t r, int64_t l, const Vector& dots) {
      const Vector d = (W::load(col_norm + l) + row_norm[r]) - T(2) * dots;
      W::store(d < T(0) ? Vector{} : d, part.squared + r * kPairCols + l);
    });
  }

  // The kernel of a row's pairs, added up to eight sums; its slopes are left in the part.
  Doubles evaluate(Part& part, int64_t r) const {
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
    Running<T> value;
    for (int64_t at = 0; at < part.width; at += kPairLanes) {
#pragma omp simd
      for (int64_t i = 0; i < kPairLanes; ++i) {
        value.lane[i] += values[at + i];
        part.by_col[at + i] += slope[at + i];
      }
    }
    return eight_of(value.lane) + eight_of(value.lane + 8);
  }

  // The gradients of some rows and columns.
  void add_products(Part& part, T factor, T* grad_a, T* grad_b) const {
    if (grad_b != nullptr)
      add_moments({part.rows, part.slopes, 1, kPairCols, kPairCols, part.count}, part.width,
                  part.cols, part.by_col, factor, grad_b);
    if (grad_a == nullptr) return;
    const int64_t rows = ceil_div(part.count, kPairLanes) * kPairLanes;
    memset(static_cast<void*>(part.slopes + part.count * kPairCols), 0,
           static_cast<size_t>((rows - part.count) * kPairCols) * sizeof(T));
    // The distances are no longer needed.
    transpose(part.slopes, rows, part.width, part.squared);
    // Some columns at a time: fewer terms in a sum, and less that cancels.
    constexpr int64_t kSome = 32;
    for (int64_t l = 0; l < part.width; l += kSome) {
      const int64_t left = part.width - l, count = left < kSome ? left : kSome;
      const T* slopes = part.squared + l * kPairRows;
      alignas(64) T by_row[kPairRows] = {};
      for (int64_t i = 0; i < count; ++i)
        for (int64_t r = 0; r < kPairRows; ++r) by_row[r] += slopes[i * kPairRows + r];
      add_moments({part.cols + l, slopes, 1, kPairCols, kPairRows, count}, rows, part.rows, by_row,
                  factor, grad_a);
    }
  }

  // grad += factor sum (point - other) slope, for each dimension of the points: the others' sums
  // are a product.
  void add_moments(const Product<T>& others, int64_t width, const T* points, const T* totals,
                   T factor, T* grad) const {
    others.run(samples.dims, width, [&](int64_t d, int64_t l, const Vector& sums) {
      const int64_t at = d * kPairCols + l;
      const Vector moved = W::load(points + at) * W::load(totals + l) - sums;
      W::store(W::load(grad + at) + factor * moved, grad + at);
    });
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
  const Scales<T> scales(args, samples.centred);
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
