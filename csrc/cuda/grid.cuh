// How a kernel's threads share a [rows, cols] grid. Everything here follows from the shape alone,
// never from the GPU: each partial sum has a fixed place, so a sum is the same bits on any launch.
#pragma once

#include "cuda/memory.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

VAEFAST_FN int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

VAEFAST_FN int64_t power_of_two(int64_t at_least) {
  int64_t p = 1;
  while (p < at_least) p *= 2;
  return p;
}

// Units of work, each for `lanes` neighbouring threads: 1, 2, ... 32, or a whole block. The values
// of `span` threads are summed, a unit's or a block's.
struct Work {
  int64_t units = 0;
  int lanes = kThreads, span = kThreads;

  VAEFAST_MEMBER int per_block() const { return kThreads / lanes; }
  int64_t blocks() const { return divide_up(units, kThreads / lanes); }
  int64_t sums() const { return span == lanes ? units : blocks(); }
};

// A lane's columns in a unit: of the `count` columns of `row` from `first` on, every `step`-th
// vector from `col` on.
struct Walk {
  int64_t row, first;
  int count, col, step;
};

// The same column's vector in each of some consecutive samples.
struct DimWalk {
  int64_t row, count, col, end;
};

// A unit is a row, or a piece of a long row.
struct RowCut {
  int64_t rows, cols, pieces, piece;
  int lanes;

  // Threads that share a row are a warp or less up to 64 vectors, 512 where there are many rows:
  // a block of 256 would idle on most of its lanes. A piece is 1 to 16 vectors for each thread of
  // a block: one while that leaves no more than 4096 pieces.
  RowCut(int64_t r, int64_t c, int vector) : rows(r), cols(c) {
    const int64_t vectors = divide_up(c, vector);
    if (vectors <= 64 || (vectors <= 512 && r >= 8192)) {
      lanes = static_cast<int>(vectors >= 32 ? 32 : power_of_two(vectors));
      piece = vectors * vector;
      pieces = c > 0 ? 1 : 0;
      return;
    }
    lanes = kThreads;
    int64_t each = power_of_two(divide_up(r * vectors, kThreads * 4096));
    each = each > 16 ? 16 : each;
    piece = each * kThreads * vector;
    pieces = divide_up(c, piece);
  }

  Work work(bool sum_blocks) const { return {rows * pieces, lanes, sum_blocks ? kThreads : lanes}; }

  template <int V>
  VAEFAST_MEMBER Walk walk(int64_t unit, int lane) const {
    int64_t row = unit, first = 0;
    if (pieces > 1) {
      // Pieces are of 1024 elements at least: their number has 32 bits.
      row = static_cast<uint32_t>(unit) / static_cast<uint32_t>(pieces);
      first = (unit - row * pieces) * piece;
    }
    const int64_t left = cols - first;
    return {row, first, static_cast<int>(left < piece ? left : piece), lane * V, lanes * V};
  }
};

// The sum of the first n of V values, pairwise.
template <class T, int V>
VAEFAST_FN T sum_of(const T* values, int n) {
  T sums[V];
#pragma unroll
  for (int j = 0; j < V; ++j) sums[j] = values[j];
  // A loop, as selects would run for whole vectors too.
#pragma unroll 1
  for (int i = n; i < V; ++i) {
#pragma unroll
    for (int j = 0; j < V; ++j) sums[j] = i == j ? T(0) : sums[j];
  }
#pragma unroll
  for (int half = V / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

// For sums over the batch: a unit is some columns of some consecutive samples.
struct DimCut {
  int64_t samples, segments, cols, pieces, each, slices;
  int lanes;

  // At least 4 samples to a slice, more where 65536 threads are busy anyway: partial sums cost
  // memory.
  DimCut(const Shape& shape, int vector) : segments(shape.segments), cols(shape.cols) {
    samples = segments > 0 ? shape.rows / segments : 0;
    const int64_t vectors = divide_up(cols, vector);
    lanes = static_cast<int>(vectors >= 32 ? 32 : power_of_two(vectors));
    pieces = divide_up(vectors, lanes);
    each = divide_up(samples * segments * vectors, 65536);
    each = each < 4 ? 4 : each;
    slices = divide_up(samples, each);
  }

  VAEFAST_MEMBER int64_t width() const { return segments * cols; }
  Work work() const { return {slices * segments * pieces, lanes, lanes}; }

  VAEFAST_MEMBER int64_t slice(int64_t unit) const { return quotient(unit, segments * pieces); }

  template <int V>
  VAEFAST_MEMBER DimWalk walk(int64_t unit, int lane) const {
    const int64_t first = slice(unit) * each;
    const int64_t place = unit - slice(unit) * segments * pieces;
    const int64_t segment = quotient(place, pieces);
    const int64_t col = ((place - segment * pieces) * lanes + lane) * V;
    const int64_t left = samples - first;
    const int64_t count = col < cols ? (left < each ? left : each) : 0;
    return {first * segments + segment, count, col, cols};
  }
};

// Whether vectors of V elements can be loaded from every row of a view.
inline bool vectors_fit(const View& view, int vector, int64_t largest) {
  const int64_t size = size_of(view.dtype);
  if (view.col_stride != 1 || size > largest) return false;
  // A row's start in bytes; one row begins where the data does.
  const int64_t unit = vector * size < 16 ? vector * size : 16;
  return reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(unit) == 0 &&
         (view.mod <= 1 || view.row_stride * size % unit == 0);
}

// rows: of the grid, which an operand with several samples has for each of them.
template <class T>
Source source(View view, int64_t rows, int vector) {
  if (!view || rows == 0) return {};
  const int64_t sample_step = quotient(rows, view.div) % view.mod * view.row_stride;
  if (view.mod == 1) {
    view.div = 1;
    view.row_stride = 0;
  }
  return {view, sample_step, vectors_fit(view, vector, sizeof(T))};
}

inline Target target(const Output& output, int64_t rows, int64_t cols, int vector) {
  View view;
  view.data = output.data;
  view.dtype = output.dtype;
  view.mod = rows;
  view.row_stride = cols;
  view.col_stride = 1;
  return {output, output && vectors_fit(view, vector, 8)};
}

inline bool stored_as(DType dtype, int stored) {
  return stored == kFloat ? dtype == DType::kF32 : dtype == DType::kBF16 || dtype == DType::kF16;
}

// True where the operand suits a kernel that knows kHalf or kFloat of it.
inline bool known(const Source& source, int64_t rows, int stored, bool may_repeat) {
  const View& v = source.view;
  if (!source) return may_repeat;
  const bool by_row = v.row_stride == 0 || (v.div == 1 && v.mod >= rows);
  return by_row && stored_as(v.dtype, stored) && (source.repeats() ? may_repeat : source.wide);
}

inline bool known(const Target& target, int stored) {
  return !target || (target.wide && stored_as(target.output.dtype, stored));
}

// Makes `times` rows one row. False, and nothing is changed, where an operand does not allow it.
inline bool collapse(Shape& shape, int64_t times, View* const* views, int count) {
  if (times <= 1 || shape.cols == 0 || shape.rows % times != 0) return false;
  for (int i = 0; i < count; ++i) {
    const View& v = *views[i];
    const bool one_value = v.col_stride == 0 && v.row_stride == 0;
    const bool dense = v.col_stride == 1 && v.div == 1 && v.row_stride == shape.cols &&
                       (v.mod % times == 0 || v.mod >= shape.rows);
    if (v && !one_value && !dense) return false;
  }
  for (int i = 0; i < count; ++i) {
    View& v = *views[i];
    if (!v || v.col_stride == 0) continue;
    v.mod = v.mod % times == 0 ? v.mod / times : shape.rows / times;
    v.row_stride *= times;
  }
  shape = {shape.rows / times, shape.cols * times, 1};
  return true;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
