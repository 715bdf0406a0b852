// What travels into a kernel, on the CPU and on a GPU: plain structs of pointers and strides.
#pragma once

#include <cstdint>

namespace vaefast {

// What the posterior's scale parameter is, and how it is bounded.
enum class Param : int { kLogvar, kLogStd, kStd, kVar, kSoftplus };
enum class Clamp : int { kNone, kHard, kSoft };

enum class DType : int { kF64, kF32, kBF16, kF16, kU8, kBool, kI32, kI64 };

// An operand over a grid of rows and columns: element (r, c) is at
// (r / div) % mod * row_stride + c * col_stride, col_stride 0 or 1. No data: the operand is absent.
struct View {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t div = 1, mod = 1, row_stride = 0, col_stride = 0;
  // What the stored value is divided by: 255 for a pixel in a byte.
  double divisor = 1;

  explicit operator bool() const { return data != nullptr; }
};

// A dense [rows, cols] result. `nontemporal`: it is large, and written past the caches.
struct Output {
  void* data = nullptr;
  DType dtype = DType::kF32;
  bool nontemporal = false;

  explicit operator bool() const { return data != nullptr; }
};

// [seed, offset], one for the whole tensor or one per sample, and the call's own offset. fresh, on
// a GPU: the offset is not written yet, and is to become 0.
struct NoiseState {
  const int64_t* words = nullptr;
  bool per_sample = false, fresh = false;
  int64_t offset = 0;
};

enum class Purpose : uint32_t { kPosterior, kBinarize, kLikelihood };

// kElem: one value per element; kSample: per sample; kDim: per place in a sample; kSum: one.
enum class Reduce : int { kNone, kElem, kSample, kDim, kSum };

// rows x cols elements; `segments` consecutive rows are one sample.
struct Shape {
  int64_t rows = 0, cols = 0, segments = 1;
};

struct SampleKlArgs {
  Shape shape;
  View mu, scale, prior_mu, prior_scale, mask, weight;
  // Injected noise over [samples * rows, cols]; else the state gives it.
  View noise;
  NoiseState state;
  Param param = Param::kLogvar;
  Clamp clamp = Clamp::kNone;
  double min_std = 0, low = 0, high = 0, temperature = 1, factor = 1;
  // 0: no sample is taken.
  int64_t samples = 0;
  Reduce reduce = Reduce::kNone;
  bool wide = false;
  int threads = 1;

  // dz/dscale, written by the forward pass where the backward pass shall not make the noise anew;
  // it has the compute type, one sample, and may be the memory of grad_scale.
  void* kept = nullptr;
  bool nontemporal_kept = false;

  // Forward: z is [samples * rows, cols]; kl is float, or double if wide.
  Output z;
  void* kl = nullptr;

  // Backward: grad_z is over [samples * rows, cols], grad_kl over [rows, cols].
  View grad_z, grad_kl;
  Output grad_mu, grad_scale, grad_prior_mu, grad_prior_scale;

  // On the CPU: a parameter of the prior that broadcasts has [kPriorBlocks, size] sums instead of
  // a gradient per element, laid out as the parameter is, zeroed by the caller and to be added up.
  double *sum_prior_mu = nullptr, *sum_prior_scale = nullptr;
  int64_t prior_mu_size = 0, prior_scale_size = 0;
};

constexpr int64_t kPriorBlocks = 16;

// Samples, and log q(z|x) - log p(z) at each in place of the KL: kl is [samples, posteriors], and
// grad_kl over [samples * rows, cols].
struct SampleMonteCarloKlArgs {
  SampleKlArgs q;
  // Backward: no gradient in mu and scale but the one through z.
  bool stop_posterior = false;
};

// log q(z|x) - log p(z) of given samples, [q.samples * rows, cols]; `q` holds the posterior, the
// prior, and room for their gradients.
struct MonteCarloKlArgs {
  SampleKlArgs q;
  // False: log q(z|x) alone.
  bool prior = true;
  View z;

  // Forward: one number per sample and posterior, float, or double if wide.
  void* value = nullptr;

  // Backward: upstream is over [samples * rows, cols].
  View upstream;
  Output grad_z;
};

constexpr int kMaxParams = 3;

struct NllArgs {
  Shape shape;
  int form = 0;
  double numbers[8] = {};
  // Index of the parameter that is one number, or -1; its gradient is summed per sample.
  int scalar = -1;
  View params[kMaxParams];
  View target, mask, weight;
  // Of a target that is a CSR matrix [target_rows, cols], whose values lie at target.data; its
  // columns ascend within a row.
  const int64_t *row_starts = nullptr, *columns = nullptr;
  // With a state, the target is an intensity to draw a binary target from.
  NoiseState state;
  // Rows of the target: those of the grid repeat them.
  int64_t target_rows = 0;
  Reduce reduce = Reduce::kNone;
  double factor = 1, grad_factor = 1;
  bool wide = false;
  int threads = 1;

  void* loss = nullptr;
  Output grads[kMaxParams];
};

struct NoiseArgs {
  Shape shape;
  NoiseState state;
  bool normal = true;
  uint32_t purpose = 0;
  int threads = 1;
  Output out;
};

// grad *= upstream; on a GPU so are `others`, of grad's shape and dtype.
struct ScaleArgs {
  Shape shape;
  View upstream;
  int threads = 1;
  Output grad;
  Output others[kMaxParams - 1];
};

}  // namespace vaefast
