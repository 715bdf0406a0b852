// Runs an operation over its units of work and sums what its lanes give.
//
// An operation has `work`, kSums, `Sum`, `run(unit, lane, sums)`, and `finish(index, sums)`, which
// is given the sums of a span. An operation with a type `Found` has, in the place of `run`,
// `read(unit, lane, held, found)` and, once every lane has what all of the unit's lanes found,
// `write(unit, lane, held, found, sums)`; with kPatches also `patch(unit, lane, found)`, behind
// every lane's `write`; with kAcrossWarps a unit is a block, whose lanes of one number in their
// warps belong together. One that takes shared memory beside its kernel's own has
// `dynamic_shared()`, in bytes. A plain C++ compiler gives the same code for csrc/cuda/emulated.h's
// threads: that is how the kernels are tested without a GPU.
#pragma once

#include <atomic>
#include <stdexcept>
#include <string>

#include "cuda/emulated.h"
#include "cuda/grid.cuh"
#include "cuda/kernels.h"
#include "cuda/merge.cuh"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace vaefast {
namespace VAEFAST_ISA {

template <class Sum>
static __device__ __forceinline__ Sum sum_lanes(Sum value, int lanes) {
  for (int other = lanes / 2; other > 0; other /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, other);
  return value;
}

template <class Op>
__global__ void __launch_bounds__(kThreads, Op::kBlocksPerSm)
    run_kernel(const __grid_constant__ Op op) {
  const int lane = threadIdx.x % op.work.lanes, group = threadIdx.x / op.work.lanes;
  const int64_t stride = int64_t{gridDim.x} * op.work.per_block();
  int turn = 0;
  for (int64_t base = int64_t{blockIdx.x} * op.work.per_block(); base < op.work.units;
       base += stride) {
    const int64_t unit = base + group;
    typename Op::Sum sums[Op::kSums > 0 ? Op::kSums : 1] = {};
    if constexpr (kMerging<Op>) {
      run_merging(op, unit, lane, sums);
    } else {
      if (unit < op.work.units) op.run(unit, lane, sums);
    }
    if constexpr (Op::kSums > 0) {
      if (!op.sums_up()) continue;
      const bool whole_block = op.work.span == kThreads;
#pragma unroll
      for (int s = 0; s < Op::kSums; ++s)
        sums[s] = sum_lanes(sums[s], whole_block ? kWarp : op.work.span);
      if (!whole_block) {
        if (lane == 0 && unit < op.work.units) op.finish(unit, sums);
        continue;
      }
      // Two buffers in turn: one barrier parts their next writers from their last readers.
      __shared__ typename Op::Sum shared[2][Op::kSums][kWarps];
      if (threadIdx.x % kWarp == 0) {
#pragma unroll
        for (int s = 0; s < Op::kSums; ++s) shared[turn][s][threadIdx.x / kWarp] = sums[s];
      }
      __syncthreads();
      if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < Op::kSums; ++s) {
          sums[s] = shared[turn][s][0];
          for (int w = 1; w < kWarps; ++w) sums[s] += shared[turn][s][w];
        }
        op.finish(base / op.work.per_block(), sums);
      }
      turn ^= 1;
    }
  }
}

template <class Op, class = void>
struct HasDynamicShared : std::false_type {};
template <class Op>
struct HasDynamicShared<Op, std::void_t<decltype(&Op::dynamic_shared)>> : std::true_type {};

template <class Op>
int64_t dynamic_shared_of(const Op& op) {
  if constexpr (HasDynamicShared<Op>::value) {
    return op.dynamic_shared();
  } else {
    return 0;
  }
}

#if defined(__CUDACC__)

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("vaefast: ") + what + ": " + cudaGetErrorString(status));
}

// The device of the call for as long as this lives, where another one is current.
class Current {
 public:
  explicit Current(int device) {
    check(cudaGetDevice(&before_), "no current CUDA device");
    if (before_ == device) return;
    check(cudaSetDevice(device), "cannot switch to the CUDA device");
    restore_ = true;
  }
  ~Current() {
    if (restore_) (void)cudaSetDevice(before_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int before_ = 0;
  bool restore_ = false;
};

constexpr int kDevices = 64;

// Multiprocessors of the largest GPU that is visible, or 132 where there is none. It takes no
// context on any of them.
inline int64_t most_multiprocessors() {
  static const int64_t most = [] {
    int devices = 0, largest = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess) devices = 0;
    for (int i = 0; i < devices; ++i) {
      int count = 0;
      if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, i) == cudaSuccess)
        largest = count > largest ? count : largest;
    }
    (void)cudaGetLastError();
    return largest > 0 ? largest : 132;
  }();
  return most;
}

// Blocks of kThreads, each with `dynamic` bytes of shared memory beside the kernel's own, that the
// current device, `device`, holds at once.
inline int64_t resident_blocks(const void* kernel, int device, int64_t dynamic,
                               std::atomic<int>* cache) {
  // Where there is dynamic memory the count follows it: that is worked out each time.
  const bool keeps = device < kDevices && dynamic == 0;
  int count = keeps ? cache[device].load(std::memory_order_relaxed) : 0;
  if (count > 0) return count;
  int each = 0, multiprocessors = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads,
                                                      static_cast<size_t>(dynamic)),
        "cannot tell how many blocks of the kernel a multiprocessor holds");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "cannot read the number of multiprocessors");
  count = (each > 0 ? each : 1) * multiprocessors;
  if (keeps) cache[device].store(count, std::memory_order_relaxed);
  return count;
}

// What a block of an operation's kernel may have of shared memory beside what the kernel declares.
template <class Op>
int64_t most_dynamic_shared(const cuda::Place& place) {
  static std::atomic<int> cache[kDevices];
  const int device = place.device;
  int most = device < kDevices ? cache[device].load(std::memory_order_relaxed) : 0;
  if (most > 0) return most;
  const Current current(device);
  const void* kernel = reinterpret_cast<const void*>(&run_kernel<Op>);
  cudaFuncAttributes own;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cannot read how much shared memory a block may have");
  check(cudaFuncGetAttributes(&own, kernel), "cannot read the kernel's own shared memory");
  most -= static_cast<int>(own.sharedSizeBytes);
  // Once and for the most, as threads of the host may launch with less and more side by side.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
        "the kernel gets no more shared memory");
  if (device < kDevices) cache[device].store(most, std::memory_order_relaxed);
  return most;
}

template <class Op>
void launch(Op op, const cuda::Place& place) {
  if (op.work.units == 0) return;
  const Current current(place.device);
  const void* kernel = reinterpret_cast<const void*>(&run_kernel<Op>);
  // As many blocks as can be resident at once, and each walks over its share: one wave.
  static std::atomic<int> cache[kDevices];
  const int64_t dynamic = dynamic_shared_of(op);
  const int64_t most = resident_blocks(kernel, place.device, dynamic, cache);
  const int64_t blocks = op.work.blocks();
  void* arguments[] = {&op};
  check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks < most ? blocks : most)),
                         dim3(kThreads), arguments, static_cast<size_t>(dynamic),
                         static_cast<cudaStream_t>(place.stream)),
        "the kernel did not start");
}

#else

inline int64_t most_multiprocessors() { return 128; }

template <class Op>
int64_t most_dynamic_shared(const cuda::Place&) {
  return emulated::most_dynamic_shared();
}

template <class Op>
void launch(Op op, const cuda::Place&) {
  if (op.work.units == 0) return;
  // Two, so that a block has more than one share.
  const int64_t blocks = op.work.blocks();
  emulated::run(
      blocks < 2 ? blocks : 2, kThreads, dynamic_shared_of(op),
      [](const void* made) { run_kernel<Op>(*static_cast<const Op*>(made)); }, &op);
}

#endif

}  // namespace VAEFAST_ISA
}  // namespace vaefast
