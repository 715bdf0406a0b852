// The likelihoods' kernels for dense float32 parameters.
#include "cuda/nll.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

void nll_float(const NllArgs& args, const cuda::Place& place) {
  run<float, kFloat, 4>(args, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
