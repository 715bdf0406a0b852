// Points against points in tiles: what the kernels over pairs share.
//
// A block has a tile of points, its own, as the rows of a tile of pairs, and goes through its share
// of the tiles of points that they meet, its columns. A second launch adds the shares up. How many
// there are follows the chip: a sum's bits are the same on GPUs of one size.
#pragma once

#include "core/pairs.h"
#include "cuda/row_nll.cuh"
#include "math/bounded.h"

namespace vaefast {
namespace VAEFAST_ISA {

// The number of a thread, from which the compiler makes all else again: kept in registers through
// all tiles, that makes others spill.
VAEFAST_FN int made_anew(int thread) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(thread));
#endif
  return thread;
}

// Calls body(thread, state) for each thread of a block, and waits for all of them.
template <class State, class Body>
VAEFAST_FN void all_threads(State* states, const Body& body) {
#if defined(__CUDA_ARCH__) || !defined(__CUDACC__)
  body(made_anew(static_cast<int>(threadIdx.x)), states[0]);
  __syncthreads();
#else
  for (int thread = 0; thread < kThreads; ++thread) body(thread, states[thread]);
#endif
}

// States that a caller of all_threads has.
#if defined(__CUDA_ARCH__) || !defined(__CUDACC__)
constexpr int kStates = 1;
#else
constexpr int kStates = kThreads;
#endif

// A dense [count, dims] tensor. wide: 16 bytes can be loaded from the start of every row.
template <class T>
struct Points {
  const T* data = nullptr;
  int64_t count = 0, dims = 0;
  bool wide = false;

  Points() = default;
  Points(const void* at, int64_t n, int64_t d)
      : data(static_cast<const T*>(at)),
        count(n),
        dims(d),
        wide(d * static_cast<int64_t>(sizeof(T)) % 16 == 0 &&
             reinterpret_cast<uintptr_t>(at) % 16 == 0) {}
};

// A tile of kSide x kSide pairs, of which a thread has kEach x kEach.
template <class T>
struct PairTile {
  static constexpr int kEach = 16 / sizeof(T), kGroups = 16, kSide = kGroups * kEach;

  struct alignas(16) Vec {
    T v[kEach];
  };

  VAEFAST_MEMBER static int row(int thread) { return thread / kGroups; }
  VAEFAST_MEMBER static int col(int thread) { return thread % kGroups; }

  // Points by dimension. Group g of dimension d is at g ^ (d % 8): threads that read one group of
  // several dimensions then meet in no bank. Pairs likewise, by the group of their row.
  VAEFAST_MEMBER static int place(int d, int group) { return d * kGroups + (group ^ (d & 7)); }
  VAEFAST_MEMBER static int pair_place(int row, int i, int group) {
    return (row * kEach + i) * kGroups + (group ^ (row & 7));
  }

  VAEFAST_MEMBER static void set(Vec* to, int d, int point, T value) {
    to[place(d, point / kEach)].v[point % kEach] = value;
  }

  // Reads a thread's part of kDims dimensions, from `dim` on, of the points from `first` on: calls
  // put(d, point, value) with d < kDims, and value 0 past the last point or dimension. kLoads are
  // under way at once.
  template <int kDims, int kLoads, class Put>
  VAEFAST_MEMBER static void read(const Points<T>& points, int64_t first, int64_t dim, int thread,
                                  const Put& put) {
    const int point = thread % kSide;
    const int left = static_cast<int>(points.dims - dim < kDims ? points.dims - dim : kDims);
    const char* row =
        reinterpret_cast<const char*>(points.data + (first + point) * points.dims + dim);
#pragma unroll kLoads
    for (int d = thread / kSide * kEach; d < left; d += kThreads / kSide * kEach) {
      uint32_t words[4];
      const int n = first + point < points.count ? (left - d < kEach ? left - d : kEach) : 0;
      load_packed<sizeof(T), kEach>(row + d * static_cast<int>(sizeof(T)),
                                    points.wide && n == kEach, n, words);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        T value;
        get_bits(words, j, value);
        put(d + j, point, value);
      }
    }
  }
};

// How points are cut into blocks: `tiles` of their own, each of which meets `inner` tiles in
// `splits` shares, for each of `chunks` parts of the dimensions.
struct TileCut {
  int64_t tiles = 0, inner = 0, chunks = 1, each = 1, splits = 1;

  struct Block {
    int64_t tile, split, chunk, begin, end;
  };

  // Shares of no more than `most` tiles, and alike.
  void share(int64_t most) {
    splits = splits_by(most);
    each = inner > 0 ? divide_up(inner, splits) : 1;
  }

  int64_t splits_by(int64_t most) const { return inner > 0 ? divide_up(inner, most) : 1; }

  VAEFAST_MEMBER int64_t units() const { return tiles * splits; }
  VAEFAST_MEMBER int64_t blocks() const { return units() * chunks; }

  VAEFAST_MEMBER Block block(int64_t index) const {
    const int64_t unit = quotient(index, chunks), tile = quotient(unit, splits);
    const int64_t split = unit - tile * splits, end = (split + 1) * each;
    return {tile, split, index - unit * chunks, split * each, end < inner ? end : inner};
  }
};

// Blocks that the chip holds at once: what a kernel's launch bounds ask for on each
// multiprocessor.
template <class Op>
int64_t wave_of() {
  return most_multiprocessors() * Op::kBlocksPerSm;
}

// The most tiles for a block that goes through cuts of pairs, so that all blocks are done soonest:
// of one to four waves, the number that leaves least of the last one idle. More waves have more
// copies to add up, and must gain a twentieth.
template <int kCount>
int64_t tiles_each(const TileCut* const (&cuts)[kCount], int64_t wave) {
  const auto blocks = [&](int64_t each) {
    int64_t sum = 0;
    for (const TileCut* cut : cuts) sum += cut->tiles * cut->chunks * cut->splits_by(each);
    return sum;
  };
  int64_t longest = 1;
  for (const TileCut* cut : cuts) longest = cut->inner > longest ? cut->inner : longest;
  int64_t best = longest;
  double soonest = -1;
  for (int64_t waves = 1; waves <= 4; ++waves) {
    int64_t low = 1, high = longest;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (blocks(middle) <= waves * wave) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    const double time = static_cast<double>(low) * divide_up(blocks(low), wave);
    if (soonest >= 0 && time > 0.95 * soonest) continue;
    soonest = time;
    best = low;
  }
  return best;
}

// A result of which every share of the pairs has a copy of its own: copies [splits, size].
template <class T>
struct Copied {
  T *out = nullptr, *copies = nullptr;
  int64_t size = 0, splits = 1;

  Copied() = default;
  Copied(void* to, int64_t n, const TileCut& cut, Room& room)
      : out(static_cast<T*>(to)), copies(out), size(n), splits(cut.splits) {
    if (out != nullptr && splits > 1) copies = room.take<T>(splits * size);
  }

  VAEFAST_MEMBER bool adds() const { return copies != out; }
  // Of 32 elements to add up.
  VAEFAST_MEMBER int64_t units() const { return adds() ? divide_up(size, kWarp) : 0; }

  VAEFAST_MEMBER void set(int64_t split, int64_t index, T value) const {
    if (out != nullptr) copies[split * size + index] = value;
  }

  // As `set`, or adds to what this thread put there before.
  VAEFAST_MEMBER void put(int64_t split, int64_t index, T value, bool fresh) const {
    if (out == nullptr) return;
    T& place = copies[split * size + index];
    place = fresh ? value : place + value;
  }

  VAEFAST_MEMBER void add_up(int64_t unit, int lane) const {
    const int64_t i = unit * kWarp + lane;
    if (i >= size) return;
    T sum = T(0);
    for (int64_t s = 0; s < splits; ++s) sum += copies[s * size + i];
    out[i] = sum;
  }
};

template <class T, int kCount>
VAEFAST_FN void add_up_one_of(const Copied<T> (&results)[kCount], int64_t unit, int lane) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int64_t units = results[i].units();
    if (unit >= 0 && unit < units) results[i].add_up(unit, lane);
    unit -= units;
  }
}

template <class Op>
__global__ void __launch_bounds__(kThreads, Op::kBlocksPerSm)
    pairs_kernel(const __grid_constant__ Op op) {
  __shared__ typename Op::Shared shared;
  for (int64_t block = blockIdx.x; block < op.blocks; block += gridDim.x) {
    op.run(block, shared);
    // The next share is written where this one may still be read.
    __syncthreads();
  }
}

#if defined(__CUDACC__)

template <class Op>
void launch_blocks(Op op, const cuda::Place& place) {
  if (op.blocks == 0) return;
  const Current current(place.device);
  constexpr int64_t kMost = 1 << 20;
  void* arguments[] = {&op};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(&pairs_kernel<Op>),
                         dim3(static_cast<unsigned>(op.blocks < kMost ? op.blocks : kMost)),
                         dim3(kThreads), arguments, 0, static_cast<cudaStream_t>(place.stream)),
        "the kernel did not start");
}

#else

template <class Op>
void launch_blocks(const Op& op, const cuda::Place&) {
  if (op.blocks == 0) return;
  emulated::run(
      op.blocks < 2 ? op.blocks : 2, kThreads, 0,
      [](const void* made) { pairs_kernel<Op>(*static_cast<const Op*>(made)); }, &op);
}

#endif

}  // namespace VAEFAST_ISA
}  // namespace vaefast
