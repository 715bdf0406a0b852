// Bringing operands in that do not lie as a kernel computes with them, compiled once for all
// kernels.
#include "cpu/tile.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// Fills `n` places with a value. A whole number of vectors is written where there is `room` for it:
// what lies behind is filled next.
template <class T>
void fill(T* to, int64_t n, int64_t room, T value) {
  constexpr int64_t kVector = 64 / sizeof(T);
  const int64_t whole = (n + kVector - 1) / kVector * kVector;
  if (whole > room) {
    for (int64_t i = 0; i < n; ++i) to[i] = value;
    return;
  }
  for (int64_t i = 0; i < whole; i += kVector)
    for (int64_t j = 0; j < kVector; ++j) to[i + j] = value;
}

template <class T>
void gather_rows(const View& view, const Tile& tile, T* buffer) {
  // The place of a row, kept without a division for each.
  int64_t at = tile.row / view.div % view.mod, left = view.div - tile.row % view.div;
  const char* base = static_cast<const char*>(view.data);
  const int64_t size = size_of(view.dtype), stride = view.row_stride * size;
  base += tile.col * view.col_stride * size;
  T* target = buffer;
  if (stride == 0 && view.col_stride == 0) {
    // One number for all, such as the upstream gradient of a sum.
    widen(view.dtype, base, target, 1);
    return fill(target, tile.size(), tile.size(), *target);
  }
  for (int64_t r = 0; r < tile.rows; ++r, target += tile.cols) {
    const char* source = base + at * stride;
    if (--left == 0) {
      left = view.div;
      at = at + 1 == view.mod ? 0 : at + 1;
    }
    if (view.col_stride == 1) {
      widen(view.dtype, source, target, tile.cols);
    } else {
      T value = T(0);
      if (same_type(view.dtype, target)) {
        memcpy(&value, source, sizeof value);
      } else {
        widen(view.dtype, source, &value, 1);
      }
      fill(target, tile.cols, (tile.rows - r) * tile.cols, value);
    }
  }
}

}  // namespace

template <class T>
void gather(const View& view, const Tile& tile, T* buffer) {
  const int64_t n = tile.size();
  if (dense(view, tile)) {
    widen(view.dtype, row_pointer(view, tile.row, tile.col), buffer, n);
  } else {
    gather_rows(view, tile, buffer);
  }
  if (view.divisor == 1) return;
  const T divisor = static_cast<T>(view.divisor);
  for (int64_t i = 0; i < n; ++i) buffer[i] /= divisor;
}

template void gather(const View&, const Tile&, float*);
template void gather(const View&, const Tile&, double*);

}  // namespace VAEFAST_ISA
}  // namespace vaefast
