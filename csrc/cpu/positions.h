// Where the operands of the likelihoods with a class dimension lie, on the CPU and on a GPU.
#pragma once

#include "core/row_nll.h"
#include "cpu/convert.h"

namespace vaefast {
namespace VAEFAST_ISA {

// `place` counts the target's positions.
VAEFAST_FN bool kept(const RowNllArgs& args, int64_t place) {
  return args.mask == nullptr || args.mask[place] != 0;
}

template <class T>
VAEFAST_FN T weight_of(const RowNllArgs& args, int64_t place) {
  return args.weight == nullptr ? T(1) : static_cast<const T*>(args.weight)[place];
}

template <class T>
VAEFAST_FN const char* params_at(const RowNllArgs& args, int64_t row, int64_t c, int64_t at) {
  const int64_t index = row * args.row_stride + c * args.class_stride + at;
  return static_cast<const char*>(args.params) + index * size_of(args.dtype);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
