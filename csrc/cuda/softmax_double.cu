// The kernels of log-softmax along rows of float64.
#include "cuda/softmax_rows.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

int64_t softmax_rows_double(const RowNllArgs& args, const cuda::Place* place) {
  return run_stored<double, kDouble, 2>(args, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
