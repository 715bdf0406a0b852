// The kernels of log-softmax along rows of float32.
#include "cuda/softmax_rows.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

int64_t softmax_rows_float(const RowNllArgs& args, const cuda::Place* place) {
  return run_stored<float, kFloat, 4>(args, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
