// What the lanes of one unit find, brought together before any of them goes on: the highest values,
// and sums that are relative to them.
#pragma once

#include <type_traits>

#include "cuda/emulated.h"
#include "cuda/grid.cuh"
#include "math/bounded.h"
#include "math/gamma.h"

namespace vaefast {
namespace VAEFAST_ISA {

// Of kSums sums, each of the first kTops is of exponentials relative to the top of its index.
template <class T, class S, int kTops_, int kSums_>
struct Merge {
  using Top = T;
  using Sum = S;
  static constexpr int kTops = kTops_, kSums = kSums_, kNumbers = kTops + kSums;
  T tops[kTops];
  S sums[kSums];

  VAEFAST_MEMBER Merge() {
#pragma unroll
    for (int i = 0; i < kTops; ++i) tops[i] = -GammaConstants<T>::infinity;
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = S(0);
  }
};

// What exponentials are taken relative to: of -inf alone, any finite number gives 0.
template <class T>
VAEFAST_FN T level_under(T top) {
  return top == -GammaConstants<T>::infinity ? T(0) : top;
}

// What a sum relative to `top` is worth relative to `whole`.
template <class T>
VAEFAST_FN T lowered(T top, T whole) {
  return top == whole ? T(1) : exp_or_zero(top - whole);
}

template <class Found>
VAEFAST_FN void lower_to(Found& found, const typename Found::Top* whole) {
#pragma unroll
  for (int i = 0; i < Found::kTops; ++i) {
    found.sums[i] *= static_cast<typename Found::Sum>(lowered(found.tops[i], whole[i]));
    found.tops[i] = whole[i];
  }
}

template <class Op, class = void>
struct HasFound : std::false_type {};
template <class Op>
struct HasFound<Op, std::void_t<typename Op::Found>> : std::true_type {};
template <class Op>
constexpr bool kMerging = HasFound<Op>::value;

// Both butterflies give every lane the same bits: a + b is b + a.
template <class T>
static __device__ __forceinline__ T top_of_lanes(T value, int lanes) {
  for (int other = lanes / 2; other > 0; other /= 2) {
    const T found = __shfl_xor_sync(0xffffffffu, value, other);
    value = found > value ? found : value;
  }
  return value;
}

template <class S>
static __device__ __forceinline__ S total_of_lanes(S value, int lanes) {
  for (int other = lanes / 2; other > 0; other /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, other);
  return value;
}

template <class Found>
static __device__ __forceinline__ void merge(Found& found, int lanes) {
  const bool block = lanes == kThreads;
  const int in_warp = block ? kWarp : lanes, warp = threadIdx.x / kWarp;
  // Each array's next writers are parted from its last readers by the other's barrier.
  __shared__ typename Found::Top tops[Found::kTops][kWarps];
  __shared__ typename Found::Sum sums[Found::kSums][kWarps];
  typename Found::Top whole[Found::kTops];
#pragma unroll
  for (int i = 0; i < Found::kTops; ++i) whole[i] = top_of_lanes(found.tops[i], in_warp);
  if (block) {
    if (threadIdx.x % kWarp == 0) {
#pragma unroll
      for (int i = 0; i < Found::kTops; ++i) tops[i][warp] = whole[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Found::kTops; ++i)
      for (int w = 0; w < kWarps; ++w) whole[i] = tops[i][w] > whole[i] ? tops[i][w] : whole[i];
  }
  lower_to(found, whole);
#pragma unroll
  for (int i = 0; i < Found::kSums; ++i) found.sums[i] = total_of_lanes(found.sums[i], in_warp);
  if (!block) return;
  if (threadIdx.x % kWarp == 0) {
#pragma unroll
    for (int i = 0; i < Found::kSums; ++i) sums[i][warp] = found.sums[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Found::kSums; ++i) {
    found.sums[i] = sums[i][0];
    for (int w = 1; w < kWarps; ++w) found.sums[i] += sums[i][w];
  }
}

// As `merge` in a block whose warps share their lanes' positions out: what the lanes of one number
// found in all warps.
template <class Found>
static __device__ __forceinline__ void merge_warps(Found& found) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  __shared__ typename Found::Top tops[Found::kTops][kWarps][kWarp];
  __shared__ typename Found::Sum sums[Found::kSums][kWarps][kWarp];
  typename Found::Top whole[Found::kTops];
#pragma unroll
  for (int i = 0; i < Found::kTops; ++i) tops[i][warp][lane] = found.tops[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Found::kTops; ++i) {
    whole[i] = tops[i][0][lane];
    for (int w = 1; w < kWarps; ++w)
      whole[i] = tops[i][w][lane] > whole[i] ? tops[i][w][lane] : whole[i];
  }
  lower_to(found, whole);
#pragma unroll
  for (int i = 0; i < Found::kSums; ++i) sums[i][warp][lane] = found.sums[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Found::kSums; ++i) {
    found.sums[i] = sums[i][0][lane];
    for (int w = 1; w < kWarps; ++w) found.sums[i] += sums[i][w][lane];
  }
}

template <class Op>
static __device__ __forceinline__ void run_merging(const Op& op, int64_t unit, int lane,
                                                   typename Op::Sum* sums) {
  typename Op::Held held;
  typename Op::Found found;
  const bool here = unit < op.work.units;
  if (here) op.read(unit, lane, held, found);
  if constexpr (Op::kAcrossWarps) {
    merge_warps(found);
  } else {
    merge(found, op.work.lanes);
  }
  if (here) op.write(unit, lane, held, found, sums);
  if constexpr (Op::kPatches) {
    if (op.work.lanes == kThreads) {
      __syncthreads();
    } else {
      __syncwarp();
    }
    if (here) op.patch(unit, lane, found);
  }
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
