// Which of the kernels of nll.cuh serves a call.
#include "cuda/nll.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// True where the kernel for one storage type can run this call.
bool plain(const NllArgs& args, int stored, int vector) {
  const int64_t rows = args.shape.rows;
  if (args.mask || args.weight || args.state.words != nullptr || args.reduce == Reduce::kElem ||
      !source<float>(args.target, rows, vector).wide)
    return false;
  for (int j = 0; j < kMaxParams; ++j) {
    if (j == args.scalar || !args.params[j]) continue;
    if (!known(source<float>(args.params[j], rows, vector), rows, stored, true) ||
        !known(target(args.grads[j], rows, args.shape.cols, vector), stored))
      return false;
  }
  return args.scalar != 0;
}

// Rows that nothing tells apart become one: no row then begins where no vector can.
NllArgs collapsed(NllArgs args) {
  const bool scalar_grad = args.scalar >= 0 && args.grads[args.scalar];
  if (args.reduce == Reduce::kSample || scalar_grad || args.state.per_sample) return args;
  View* const views[] = {&args.params[0], &args.params[1], &args.params[2],
                         &args.target,    &args.mask,      &args.weight};
  const int64_t rows = args.shape.rows;
  const bool repeats = args.target_rows != rows;
  if (repeats || !collapse(args.shape, rows, views, 6))
    collapse(args.shape, args.target_rows, views, 6);
  if (args.shape.rows != rows) args.target_rows = 1;
  return args;
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::nll(const NllArgs& given, const Place& place) {
  using namespace VAEFAST_ISA;
  const NllArgs args = collapsed(given);
  if (args.wide) return nll_double(args, place);
  if (plain(args, kFloat, 4)) return nll_float(args, place);
  if (plain(args, kHalf, 8)) return nll_half(args, place);
  nll_any(args, place);
}

}  // namespace vaefast
