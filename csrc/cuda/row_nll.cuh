// What the kernels of the likelihoods with a class dimension share: classes and results of
// positions, and the workspace.
#pragma once

#include "cpu/positions.h"
#include "cuda/totals.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

// The target's class at a place, or -1 where it is none.
VAEFAST_FN int64_t class_at(const RowNllArgs& args, int64_t place) {
  int64_t c;
  switch (args.target_dtype) {
    case DType::kI64:
      c = static_cast<const int64_t*>(args.target)[place];
      break;
    case DType::kI32:
      c = static_cast<const int32_t*>(args.target)[place];
      break;
    default:
      c = static_cast<const uint8_t*>(args.target)[place];
  }
  return c >= 0 && c < args.classes ? c : -1;
}

// The loss of a likelihood whose units of work are positions, each of which gives `each` partial
// sums.
inline Total position_total(const RowNllArgs& args, const Work& work, int64_t each) {
  const int64_t positions = args.rows * args.inner;
  if (args.reduce == Reduce::kElem)
    return {args.loss, nullptr, positions, 1, 1, 1, args.factor, args.wide};
  if (args.reduce == Reduce::kSum)
    return {args.loss, nullptr, 1, work.sums(), 0, 1, args.factor, args.wide};
  const int64_t samples = args.segments > 0 ? args.rows / args.segments : 0;
  const int64_t terms = args.segments * args.inner * each;
  return {args.loss, nullptr, samples, terms, terms, 1, args.factor, args.wide};
}

// The workspace, given away from its start on; without one it only counts.
class Room {
 public:
  Room() = default;
  explicit Room(const cuda::Place& place)
      : at_(static_cast<char*>(place.workspace)), end_(place.bytes), real_(true) {}

  template <class N>
  N* take(int64_t numbers) {
    N* const here = real_ ? reinterpret_cast<N*>(at_ + used_) : nullptr;
    used_ += (numbers * static_cast<int64_t>(sizeof(N)) + 15) / 16 * 16;
    if (real_ && used_ > end_) throw std::invalid_argument("vaefast: the workspace is too small");
    return here;
  }

  void take(Total& total) {
    if (total && !total.direct()) total.partials = take<double>(total.count * total.terms);
  }

  int64_t used() const { return used_; }

 private:
  char* at_ = nullptr;
  int64_t end_ = 0, used_ = 0;
  bool real_ = false;
};

// Each queues a call, or counts the bytes that it takes.
int64_t softmax_rows(const RowNllArgs& args, const cuda::Place* place);
int64_t softmax_columns(const RowNllArgs& args, const cuda::Place* place);
int64_t softmax_tiles(const RowNllArgs& args, const cuda::Place* place);
int64_t mixture_rows(const RowNllArgs& args, const cuda::Place* place);

}  // namespace VAEFAST_ISA
}  // namespace vaefast
