// Sums over a grid that are the same bits whatever the thread count: partial sums at fixed places,
// added up in a fixed order.
#pragma once

#include <cstdlib>

#include "cpu/tile.h"

namespace vaefast {
namespace VAEFAST_ISA {

// Zeroed doubles; no std::vector, whose weak symbols would be shared between instruction sets.
class Partials {
 public:
  explicit Partials(int64_t n)
      : data_(n <= kInline
                  ? inline_
                  : static_cast<double*>(malloc(static_cast<size_t>(n) * sizeof(double)))) {
    if (data_ != nullptr) memset(data_, 0, static_cast<size_t>(n) * sizeof(double));
  }
  ~Partials() {
    if (data_ != inline_) free(data_);
  }
  Partials(const Partials&) = delete;
  Partials& operator=(const Partials&) = delete;

  double* get() { return data_; }
  bool failed() const { return data_ == nullptr; }

 private:
  static constexpr int64_t kInline = 256;
  double inline_[kInline];
  double* data_;
};

// One slot per tile of a long row, or per row.
VAEFAST_FN int64_t slots(const Tiling& tiling) {
  return tiling.tiles_per_row > 1 ? tiling.count : tiling.shape.rows;
}

// The sums of a tile's rows, each to its slot.
template <class T>
VAEFAST_FN void sum_rows(const Tiling& tiling, int64_t index, const Tile& tile, const T* values,
                         double* partials) {
  if (tiling.tiles_per_row > 1) {
    partials[index] = sum(values, tile.cols);
    return;
  }
  for (int64_t r = 0; r < tile.rows; ++r)
    partials[tile.row + r] = sum(values + r * tile.cols, tile.cols);
}

// One sum per sample from the slots.
template <class T>
static void samples_from(const Tiling& tiling, const double* partials, double factor, T* out) {
  const int64_t per_sample = tiling.shape.segments * tiling.tiles_per_row;
  const int64_t samples = tiling.shape.segments > 0 ? tiling.shape.rows / tiling.shape.segments : 0;
  for (int64_t b = 0; b < samples; ++b) {
    double total = 0;
    if (tiling.count > 0)
      for (int64_t i = 0; i < per_sample; ++i) total += partials[b * per_sample + i];
    out[b] = static_cast<T>(total * factor);
  }
}

VAEFAST_FN double total_of(const double* partials, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += partials[i];
  return total;
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
