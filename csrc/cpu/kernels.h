// The CPU kernels of one instruction set. False: out of memory, nothing was computed.
#pragma once

#include "core/args.h"
#include "math/config.h"

namespace vaefast {
namespace VAEFAST_ISA {

bool sample_kl(const SampleKlArgs& args);
bool sample_kl_backward(const SampleKlArgs& args);
bool log_ratio(const LogRatioArgs& args);
bool log_ratio_backward(const LogRatioArgs& args);
bool nll(const NllArgs& args);
bool noise(const NoiseArgs& args);
bool scale(const ScaleArgs& args);

}  // namespace VAEFAST_ISA
}  // namespace vaefast
