// The CUDA kernels. Each call only queues work: it allocates nothing and waits for nothing.
#pragma once

#include "core/args.h"
#include "core/pairs.h"
#include "core/row_nll.h"

namespace vaefast {
namespace cuda {

// Where a call runs, and memory for its partial sums: `workspace` says how much it takes.
struct Place {
  int device = 0;
  void* stream = nullptr;
  void* workspace = nullptr;
  int64_t bytes = 0;
};

// Bytes for a call over `shape`. target_rows: those of NllArgs, or the shape's rows.
int64_t workspace(const Shape& shape, Reduce reduce, bool scalar_grad, int64_t target_rows);

// Each throws std::runtime_error where the launch fails, std::invalid_argument where the workspace
// is too small.
void sample_kl(const SampleKlArgs& args, const Place& place);
void sample_kl_backward(const SampleKlArgs& args, const Place& place);
void nll(const NllArgs& args, const Place& place);
void noise(const NoiseArgs& args, const Place& place);
void scale(const ScaleArgs& args, const Place& place);
void row_nll(const RowNllArgs& args, const Place& place);
// These two take what `workspace` says of all samples' rows by Reduce::kSample.
void estimated_kl(const EstimatedKlArgs& args, const Place& place);
void log_ratio(const LogRatioArgs& args, const Place& place);
void estimated_kl_backward(const EstimatedKlArgs& args, const Place& place);
void log_ratio_backward(const LogRatioArgs& args, const Place& place);
void mmd(const MmdArgs& args, const Place& place);
void mixture_log_prob(const MixtureArgs& args, const Place& place);
void mixture_log_prob_backward(const MixtureArgs& args, const Place& place);
void tc_terms(const MixtureArgs& args, const Place& place);
void tc_terms_backward(const MixtureArgs& args, const Place& place);

// Bytes for a call of each.
int64_t row_workspace(const RowNllArgs& args);
int64_t mmd_workspace(const MmdArgs& args);
int64_t mixture_log_prob_workspace(const MixtureArgs& args);
int64_t mixture_log_prob_backward_workspace(const MixtureArgs& args);
int64_t tc_terms_workspace(const MixtureArgs& args);
int64_t tc_terms_backward_workspace(const MixtureArgs& args);

}  // namespace cuda
}  // namespace vaefast
