// The kernels of log-softmax along rows of bfloat16 or float16.
#include "cuda/softmax_rows.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

int64_t softmax_rows_half(const RowNllArgs& args, const cuda::Place* place) {
  return run_stored<float, kHalf, 8>(args, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
