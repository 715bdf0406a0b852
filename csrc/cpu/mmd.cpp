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
#include "cpu/mmd_samples.h"
#include "cpu/mmd_scales.h"
#include "cpu/products.h"
#include "cpu/tile.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

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
