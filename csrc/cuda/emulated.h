// A GPU's threads on the CPU, so that the kernels are tested without one: those of a block are
// fibers that a barrier parts, and run in the order that VAEFAST_EMULATED_ORDER says between two
// barriers:
//
//   forward           by their numbers, the default
//   reversed          against them
//   shuffled:SEED     in another order behind each barrier
//   interleaved:SEED  as shuffled; in a build that looks at accesses (below) a thread may also stop
//                     at each of them for another to go on
//   none              not at all: a launch does nothing
//
// A block's shared memory is not written over before the next block runs, as on a GPU, and holds
// anything at first. With VAEFAST_EMULATED_ACCESSES=ON the build looks at every access to memory,
// and a launch in which two threads of a block meet at one address, one of them to write it, with
// no barrier between them is an error.
#pragma once

#if !defined(__CUDACC__)

#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __syncthreads ::vaefast::emulated::sync_block
#define __syncthreads_or ::vaefast::emulated::sync_block_or
#define __syncwarp ::vaefast::emulated::sync_warp
#define __shfl_xor_sync ::vaefast::emulated::shuffle_xor
#define threadIdx ::vaefast::emulated::thread_index
#define blockIdx ::vaefast::emulated::block_index
#define gridDim ::vaefast::emulated::grid_dim

namespace vaefast {
namespace emulated {

struct Index {
  unsigned x = 0;
};

extern thread_local Index thread_index, block_index, grid_dim;

void sync_block();
// Whether any thread of the block says so.
int sync_block_or(int asked);
void sync_warp();
// Every lane of a warp gives `bytes`, of at most 8, and gets those of the lane `other` away by xor.
void exchange(void* value, int other, size_t bytes);
// A warp's product of TF32 matrices, as cuda/mma.cuh says: a lane's part of either, and of the
// sums.
void multiply_add(const uint32_t* a, const uint32_t* b, float* sums);
// The shared memory that a launch has beside what its kernel declares.
void* dynamic_shared();
// What a block may have of that.
int64_t most_dynamic_shared();
// Runs kernel(op) in `threads` threads of each of `blocks` blocks. Throws std::runtime_error where
// threads wait for one that does not come, or race.
void run(int64_t blocks, int threads, int64_t dynamic_shared, void (*kernel)(const void* op),
         const void* op);

template <class T>
T shuffle_xor(unsigned, T value, int other) {
  exchange(&value, other, sizeof value);
  return value;
}

}  // namespace emulated
}  // namespace vaefast

#endif
