// The likelihoods' kernels for calls computed in float64.
#include "cuda/nll.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

void nll_double(const NllArgs& args, const cuda::Place& place) {
  run<double, kAny, 4>(args, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
