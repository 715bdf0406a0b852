// The likelihoods' kernels for parameters of any storage and layout, computed in float32.
#include "cuda/nll.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

void nll_any(const NllArgs& args, const cuda::Place& place) { run<float, kAny, 4>(args, place); }

}  // namespace VAEFAST_ISA
}  // namespace vaefast
