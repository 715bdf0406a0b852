// The CPU kernels, by the instruction set that runs.
#pragma once

#include "core/args.h"
#include "core/pairs.h"
#include "core/row_nll.h"

namespace vaefast {
namespace cpu {

// Each throws std::bad_alloc where scratch memory is not to be had; the results are then not set.
void sample_kl(const SampleKlArgs& args);
void sample_kl_backward(const SampleKlArgs& args);
void estimated_kl(const EstimatedKlArgs& args);
void estimated_kl_backward(const EstimatedKlArgs& args);
void log_ratio(const LogRatioArgs& args);
void log_ratio_backward(const LogRatioArgs& args);
void nll(const NllArgs& args);
void noise(const NoiseArgs& args);
void scale(const ScaleArgs& args);
void mixture_log_prob(const MixtureArgs& args);
void mixture_log_prob_backward(const MixtureArgs& args);
void tc_terms(const MixtureArgs& args);
void tc_terms_backward(const MixtureArgs& args);
void mmd(const MmdArgs& args);
void softmax_nll(const RowNllArgs& args);
void mixture_nll(const RowNllArgs& args);

}  // namespace cpu

// The forms that `nll` knows, in the order of their numbers; ends with nullptr.
extern const char* const kForms[];

// Asks for huge pages where a large fresh result begins: most of the time of a large operator is
// page faults (a 50 MB product: 13.1 ms into fresh memory, 3.0 ms with huge pages).
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace vaefast
