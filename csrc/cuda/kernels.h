// The CUDA kernels. Each call only queues work: it allocates nothing and waits for nothing.
#pragma once

#include "core/kernels.h"

namespace vaefast {
namespace cuda {

// Where a call runs, and memory for its partial sums: `workspace` says how much it takes.
struct Place {
  int device = 0;
  void* stream = nullptr;
  void* workspace = nullptr;
  int64_t bytes = 0;
};

// Bytes for a call over `shape`. target_rows: those of NllArgs, or the shape's rows.
int64_t workspace(const Shape& shape, Reduce reduce, bool scalar_grad, int64_t target_rows);

// Each throws std::runtime_error where the launch fails, std::invalid_argument where the workspace
// is too small.
#define VAEFAST_DECLARE(name, Args) void name(const Args& args, const Place& place);
VAEFAST_GPU_KERNELS(VAEFAST_DECLARE)
#undef VAEFAST_DECLARE

// Bytes for a call of each.
#define VAEFAST_DECLARE(name, Args) int64_t name##_workspace(const Args& args);
VAEFAST_GPU_WORKSPACES(VAEFAST_DECLARE)
#undef VAEFAST_DECLARE

}  // namespace cuda
}  // namespace vaefast
