// A kernel walks its grid in tiles that stay in the L1 cache: operands are brought in and
// converted, plain loops compute, results are converted and put out.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/args.h"
#include "cpu/convert.h"
#include "cpu/nontemporal.h"
#include "math/special.h"

namespace vaefast {
namespace VAEFAST_ISA {

// Elements in a tile: ten float buffers of 4 KB fill a 48 KB L1 cache, as do ten of double.
template <class T>
constexpr int64_t kTile = 4096 / sizeof(T);

// Consecutive columns of one row, or whole consecutive rows.
struct Tile {
  int64_t row, rows, col, cols;

  int64_t size() const { return rows * cols; }
  // Place in a dense [rows, cols] array.
  int64_t start(const Shape& shape) const { return row * shape.cols + col; }
};

// How a grid is cut. The cut depends on the shape alone, never on the number of threads: that is
// what makes every sum the same bits whatever the thread count.
struct Tiling {
  int64_t rows_per_tile, tiles_per_row, count, cols_per_tile;
  Shape shape;

  Tiling(const Shape& s, int64_t capacity) : shape(s) {
    const bool long_rows = s.cols > capacity;
    rows_per_tile = long_rows ? 1 : capacity / (s.cols > 0 ? s.cols : 1);
    cols_per_tile = long_rows ? capacity : s.cols;
    tiles_per_row = long_rows ? (s.cols + capacity - 1) / capacity : 1;
    if (!long_rows) rows_per_tile = even(s.rows, rows_per_tile);
    count = s.cols == 0 ? 0
            : long_rows ? s.rows * tiles_per_row
                        : (s.rows + rows_per_tile - 1) / rows_per_tile;
  }

  // Rows a tile so that there are a multiple of four: seven tiles would be four for one thread and
  // three for the other, and the last one short.
  static int64_t even(int64_t rows, int64_t most) {
    const int64_t tiles = (rows + most - 1) / most;
    if (tiles <= 1) return most;
    const int64_t rounded = (tiles + 3) / 4 * 4;
    return (rows + rounded - 1) / rounded;
  }

  Tile tile(int64_t index) const {
    if (tiles_per_row > 1) {
      const int64_t row = index / tiles_per_row, col = index % tiles_per_row * cols_per_tile;
      const int64_t left = shape.cols - col;
      return {row, 1, col, left < cols_per_tile ? left : cols_per_tile};
    }
    const int64_t row = index * rows_per_tile, left = shape.rows - row;
    return {row, left < rows_per_tile ? left : rows_per_tile, 0, shape.cols};
  }

  // The tile after it, or itself where it is the last.
  Tile following(int64_t index) const { return tile(index + 1 < count ? index + 1 : index); }
};

VAEFAST_FN const char* row_pointer(const View& view, int64_t row, int64_t col) {
  const int64_t index = row / view.div % view.mod * view.row_stride + col * view.col_stride;
  return static_cast<const char*>(view.data) + index * size_of(view.dtype);
}

// True where the tile's rows follow each other in memory without a gap.
VAEFAST_FN bool dense(const View& view, const Tile& tile) {
  if (view.col_stride != 1) return false;
  if (tile.rows == 1) return true;
  return view.div == 1 && view.row_stride == tile.cols &&
         tile.row % view.mod + tile.rows <= view.mod;
}

// Brings `bytes` into the second-level cache, to be read or written.
template <bool kWrite = false>
VAEFAST_FN void fetch(const char* from, int64_t bytes) {
#if defined(__GNUC__)
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, kWrite ? 1 : 0, 2);
#endif
}

// The operand over the tile in `buffer`, in the compute type and divided by its divisor.
template <class T>
void gather(const View& view, const Tile& tile, T* buffer);

// The operand over the tile: where it lies, or converted into `buffer`.
template <class T>
static const T* load(const View& view, const Tile& tile, T* buffer) {
  if (same_type(view.dtype, buffer) && view.divisor == 1 && dense(view, tile))
    return reinterpret_cast<const T*>(row_pointer(view, tile.row, tile.col));
  gather(view, tile, buffer);
  return buffer;
}

// Where to compute a tile of a result: in place, or in `buffer` for `finish` to bring there.
template <class T>
static T* destination(const Output& out, int64_t start, T* buffer) {
  const bool in_place = same_type(out.dtype, buffer) && !out.nontemporal;
  return in_place ? static_cast<T*>(out.data) + start : buffer;
}

// Elements of a tile between two prefetches.
constexpr int64_t kChunk = 128;

// Where the next tile's operands and results lie, to be brought into the cache bit by bit while
// this tile is computed: all at once they would wait for one another.
struct Prefetch {
  static constexpr int kMost = 2 * kMaxParams + 1;
  const char* from[kMost];
  int64_t width[kMost];
  int count = 0;

  // Whether it pays: not where what a thread reads and writes stays in its second-level cache, of
  // 2 MB where this was measured. sample_kl's backward pass at 1024 x 128, 1.25 MB a thread, takes
  // 46 us without and 61 with it.
  static bool pays(const Shape& shape, int64_t arrays, int64_t size, int threads) {
    constexpr int64_t kCache = int64_t{3} << 19;
    return shape.rows * shape.cols * arrays * size > kCache * threads;
  }

  void read(const View& view, const Tile& tile) {
    if (dense(view, tile)) add(row_pointer(view, tile.row, tile.col), size_of(view.dtype));
  }

  void write(const Output& out, int64_t start) {
    const int64_t size = size_of(out.dtype);
    if (out && !out.nontemporal) add(static_cast<const char*>(out.data) + start * size, size);
  }

  void add(const char* at, int64_t size) {
    from[count] = at;
    width[count++] = size;
  }

  // Elements [i, i + n) of each.
  void issue(int64_t i, int64_t n) const {
    for (int j = 0; j < count; ++j) fetch(from[j] + i * width[j], n * width[j]);
  }
};

// Brings at most a tile's computed values to where they belong.
template <class T>
static void put_out(const Output& out, int64_t start, int64_t n, const T* values) {
  const int64_t width = size_of(out.dtype);
  char* to = static_cast<char*>(out.data) + start * width;
  if (!out.nontemporal) return narrow(values, out.dtype, to, n);
  if (same_type(out.dtype, values)) return nontemporal_copy(values, to, n * width);
  alignas(64) char narrowed[kTile<T> * sizeof(T)];
  narrow(values, out.dtype, narrowed, n);
  nontemporal_copy(narrowed, to, n * width);
}

// As `put_out`, for values that `destination` said where to compute.
template <class T>
static void finish(const Output& out, int64_t start, int64_t n, const T* values) {
  if (same_type(out.dtype, values) && !out.nontemporal) return;
  put_out(out, start, n, values);
}

typedef float Lanes __attribute__((vector_size(64)));

typedef double Doubles __attribute__((vector_size(64)));

// Halved until one is left.
VAEFAST_FN double sum_lanes(const Doubles& eight) {
  typedef double D4 __attribute__((vector_size(32)));
  typedef double D2 __attribute__((vector_size(16)));
  D4 four[2];
  memcpy(four, &eight, sizeof four);
  const D4 half = four[0] + four[1];
  D2 two[2];
  memcpy(two, &half, sizeof two);
  const D2 quarter = two[0] + two[1];
  return quarter[0] + quarter[1];
}

// Eight values as they lie in memory.
template <class T>
VAEFAST_FN Doubles eight_of(const T* values) {
  typedef T V __attribute__((vector_size(8 * sizeof(T))));
  V eight;
  memcpy(&eight, values, sizeof eight);
  return __builtin_convertvector(eight, Doubles);
}

VAEFAST_FN double sum_lanes(const Lanes& lanes) {
  float values[16];
  memcpy(values, &lanes, sizeof values);
  return sum_lanes(eight_of(values) + eight_of(values + 8));
}

// Eight running sums in double: what a short row takes. The last eight values are taken whole, and
// those already counted among them left out.
template <class T>
VAEFAST_FN double sum_wide(const T* values, int64_t n) {
  if (n < 8) {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += static_cast<double>(values[i]);
    return total;
  }
  Doubles total = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) total += eight_of(values + i);
  if (i < n) {
    typedef int64_t Places __attribute__((vector_size(64)));
    const Places place = {0, 1, 2, 3, 4, 5, 6, 7};
    total += place >= 8 - (n - i) ? eight_of(values + n - 8) : Doubles{};
  }
  return sum_lanes(total);
}

// 16 running sums in each of four registers, then double: a tile's sum is pairwise in effect.
// The vector type carries the order of the additions, so every instruction set gives its own bits.
VAEFAST_FN double sum(const float* values, int64_t n) {
  if (n < 64) return sum_wide(values, n);
  Lanes total[4] = {};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) {
      Lanes lanes;
      memcpy(&lanes, values + i + 16 * j, sizeof lanes);
      total[j] += lanes;
    }
  }
  const Lanes lanes = (total[0] + total[1]) + (total[2] + total[3]);
  const double whole = sum_lanes(lanes);
  return i == n ? whole : whole + sum_wide(values + i, n - i);
}

VAEFAST_FN double sum(const double* values, int64_t n) { return sum_wide(values, n); }

// Elements are weighed; those that the mask leaves out become 0, whatever they and their weights
// were.
template <class T>
static void weigh(const View& mask, const View& weight, const Tile& tile, T* values, T* buffer) {
  const int64_t n = tile.size();
  if (weight) {
    const T* factor = load(weight, tile, buffer);
    for (int64_t i = 0; i < n; ++i) values[i] *= factor[i];
  }
  if (mask) {
    const T* keep = load(mask, tile, buffer);
    for (int64_t i = 0; i < n; ++i) values[i] = keep[i] != T(0) ? values[i] : T(0);
  }
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
