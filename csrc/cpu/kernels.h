// The CPU kernels of one instruction set. False: out of memory, nothing was computed.
#pragma once

#include "core/args.h"
#include "core/pairs.h"
#include "core/row_nll.h"
#include "math/config.h"

namespace vaefast {
namespace VAEFAST_ISA {

bool sample_kl(const SampleKlArgs& args);
bool sample_kl_backward(const SampleKlArgs& args);
bool estimated_kl(const EstimatedKlArgs& args);
bool estimated_kl_backward(const EstimatedKlArgs& args);
bool log_ratio(const LogRatioArgs& args);
bool log_ratio_backward(const LogRatioArgs& args);
bool nll(const NllArgs& args);
bool noise(const NoiseArgs& args);
bool scale(const ScaleArgs& args);
bool mixture_log_prob(const MixtureArgs& args);
bool mixture_log_prob_backward(const MixtureArgs& args);
bool tc_terms(const MixtureArgs& args);
bool tc_terms_backward(const MixtureArgs& args);
bool mmd(const MmdArgs& args);
bool softmax_nll(const RowNllArgs& args);
bool mixture_nll(const RowNllArgs& args);

}  // namespace VAEFAST_ISA
}  // namespace vaefast
