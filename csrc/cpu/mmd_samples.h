// The two samples of the maximum mean discrepancy, laid out in blocks of points.
#pragma once

#include "cpu/pairs.h"
#include "cpu/tile.h"

namespace vaefast {
namespace VAEFAST_ISA {

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

}  // namespace VAEFAST_ISA
}  // namespace vaefast
