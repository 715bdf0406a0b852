// The likelihoods' kernels for dense bfloat16 or float16 parameters.
#include "cuda/nll.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

void nll_half(const NllArgs& args, const cuda::Place& place) { run<float, kHalf, 8>(args, place); }

}  // namespace VAEFAST_ISA
}  // namespace vaefast
