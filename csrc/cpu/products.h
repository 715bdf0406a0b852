// Sums of products of two tiles, and squared distances, in registers.
#pragma once

#include "cpu/pairs.h"

namespace vaefast {
namespace VAEFAST_ISA {

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

}  // namespace VAEFAST_ISA
}  // namespace vaefast
