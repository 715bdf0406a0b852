// Which of the kernels of log-softmax serves a call.
#include "cuda/softmax_rows.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

int64_t softmax_rows(const RowNllArgs& args, const cuda::Place* place) {
  if (args.wide) return softmax_rows_double(args, place);
  if (args.dtype == DType::kF32) return softmax_rows_float(args, place);
  return softmax_rows_half(args, place);
}

namespace {

int64_t queue(const RowNllArgs& args, const cuda::Place* place) {
  if (args.form == RowForm::kLogisticMixture) return mixture_rows(args, place);
  if (args.inner == 1) return softmax_rows(args, place);
  // What a block of softmax_columns reads of up to 24 classes is still in the first-level cache
  // when it reads it again.
  const bool tiles = args.classes > 24 && args.classes <= (args.wide ? 128 : 256);
  return tiles ? softmax_tiles(args, place) : softmax_columns(args, place);
}

}  // namespace
}  // namespace VAEFAST_ISA

int64_t cuda::row_nll_workspace(const RowNllArgs& args) {
  return VAEFAST_ISA::queue(args, nullptr);
}

void cuda::row_nll(const RowNllArgs& args, const Place& place) { VAEFAST_ISA::queue(args, &place); }

}  // namespace vaefast
