// Every kernel and the struct that it takes, once: the CPU's declarations and dispatch, the GPU's
// declarations, and what both call them by are made of these lists.
#pragma once

#include "core/args.h"
#include "core/pairs.h"
#include "core/row_nll.h"

#define VAEFAST_SHARED_KERNELS(X)                           \
  X(sample_kl, SampleKlArgs)                                \
  X(sample_kl_backward, SampleKlArgs)                       \
  X(sample_monte_carlo_kl, SampleMonteCarloKlArgs)          \
  X(sample_monte_carlo_kl_backward, SampleMonteCarloKlArgs) \
  X(monte_carlo_kl, MonteCarloKlArgs)                       \
  X(monte_carlo_kl_backward, MonteCarloKlArgs)              \
  X(nll, NllArgs)                                           \
  X(noise, NoiseArgs)                                       \
  X(scale, ScaleArgs)                                       \
  X(mixture_log_prob, GaussianMixtureArgs)                  \
  X(mixture_log_prob_backward, GaussianMixtureArgs)         \
  X(tc_terms, GaussianMixtureArgs)                          \
  X(tc_terms_backward, GaussianMixtureArgs)                 \
  X(mmd, MmdArgs)

// The likelihoods with a class dimension are two files on the CPU, and one entry on the GPU.
#define VAEFAST_CPU_KERNELS(X) \
  VAEFAST_SHARED_KERNELS(X)    \
  X(softmax_nll, RowNllArgs)   \
  X(logistic_mixture_nll, RowNllArgs)

#define VAEFAST_GPU_KERNELS(X) \
  VAEFAST_SHARED_KERNELS(X)    \
  X(row_nll, RowNllArgs)

// Those on the GPU whose partial sums take memory, by a count of their own.
#define VAEFAST_GPU_WORKSPACES(X)                   \
  X(sample_monte_carlo_kl, SampleMonteCarloKlArgs)  \
  X(monte_carlo_kl, MonteCarloKlArgs)               \
  X(row_nll, RowNllArgs)                            \
  X(mmd, MmdArgs)                                   \
  X(mixture_log_prob, GaussianMixtureArgs)          \
  X(mixture_log_prob_backward, GaussianMixtureArgs) \
  X(tc_terms, GaussianMixtureArgs)                  \
  X(tc_terms_backward, GaussianMixtureArgs)
