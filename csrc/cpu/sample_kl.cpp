// z = mu + temperature sigma eps and KL(q || p) on the CPU.
#include "cpu/sample_kl.h"
#include "cpu/kernels.h"
#include "cpu/sums.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class T>
struct ForwardBuffers {
  Posterior<T> q;
  NoiseBuffer<T> noise;
  T kl[kTile<T>], z[kTile<T>], spare[kTile<T>];
};

template <class T>
void sample_tile(const SampleKlArgs& args, const Tile& tile, ForwardBuffers<T>& b) {
  const int64_t n = tile.size();
  const T temperature = T(args.temperature);
  const int64_t stride = args.shape.rows * args.shape.cols;
  for (int64_t k = 0; k < args.samples; ++k) {
    const int64_t start = tile.start(args.shape) + k * stride;
    Prefetch prefetch;
    if (k + 1 < args.samples) prefetch.write(args.z, start + stride);
    prefetch.issue(0, n);
    const T* eps = load_noise(args, tile, k, b.noise);
    T* __restrict z = destination(args.z, start, b.z);
    const T* mu = b.q.mu;
    const T* std = b.q.scale.std;
    for (int64_t i = 0; i < n; ++i) z[i] = madd(temperature * std[i], eps[i], mu[i]);
    finish(args.z, start, n, z);
    if (args.kept == nullptr) continue;
    T* kept = static_cast<T*>(args.kept) + start;
    scale_derivative(args, b.q.scale, n, eps, args.nontemporal_kept ? b.z : kept);
    if (args.nontemporal_kept) nontemporal_copy(b.z, kept, n * static_cast<int64_t>(sizeof(T)));
  }
}

template <class T>
void kl_tile(const SampleKlArgs& args, const Tile& tile, ForwardBuffers<T>& b) {
  const int64_t n = tile.size();
  const T* mu = b.q.mu;
  const T* logvar = b.q.scale.logvar;
  if (has_prior(args)) {
    const T* prior_mu = b.q.prior_mu;
    const T* prior_logvar = b.q.prior.logvar;
    for (int64_t i = 0; i < n; ++i)
      b.kl[i] = kl_prior(mu[i] - prior_mu[i], logvar[i], prior_logvar[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) b.kl[i] = kl_standard(mu[i], logvar[i]);
  }
  weigh(args.mask, args.weight, tile, b.kl, b.z);
}

template <bool kNormal, class T>
void usual_loop(int64_t n, T temperature, const T* __restrict mu, const T* __restrict logvar,
                const T* __restrict eps, T* __restrict z, T* __restrict derivative,
                T* __restrict kl) {
  for (int64_t i = 0; i < n; ++i) {
    T std, rest;
    if constexpr (kNormal) {
      std_and_kl_normal(logvar[i], std, rest);
    } else {
      std_and_kl(logvar[i], std, rest);
    }
    const T noise = temperature * std * eps[i];
    z[i] = mu[i] + noise;
    derivative[i] = T(0.5) * noise;
    kl[i] = madd(T(0.5) * mu[i], mu[i], rest);
  }
}

template <class T>
void usual_tile(const SampleKlArgs& args, const Tile& tile, const Tile& next,
                ForwardBuffers<T>& b) {
  const int64_t n = tile.size(), start = tile.start(args.shape);
  const Output kept{args.kept, args.wide ? DType::kF64 : DType::kF32, args.nontemporal_kept};
  Prefetch prefetch;
  if (Prefetch::pays(args.shape, 4, sizeof(T), args.threads)) {
    prefetch.read(args.mu, next);
    prefetch.read(args.scale, next);
    prefetch.write(args.z, next.start(args.shape));
    prefetch.write(kept, next.start(args.shape));
  }
  const T* eps = load_noise(args, tile, 0, b.noise);
  const T* mu = load(args.mu, tile, b.q.mu_buffer);
  const T* logvar = load(args.scale, tile, b.q.scale_buffers.raw);
  T* z = destination(args.z, start, b.z);
  T* derivative = kept ? destination(kept, start, b.spare) : b.spare;
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t m = n - i < kChunk ? n - i : kChunk;
    prefetch.issue(i, m);
    // Every exponential of the log-variances is a normal number but for outliers.
    const bool normal = all_below(m, logvar + i, kNormalLogvar<T>);
    const auto loop = normal ? usual_loop<true, T> : usual_loop<false, T>;
    loop(m, T(args.temperature), mu + i, logvar + i, eps + i, z + i, derivative + i, b.kl + i);
  }
  finish(args.z, start, n, z);
  if (kept) finish(kept, start, n, derivative);
  weigh(args.mask, args.weight, tile, b.kl, b.z);
}

// The sample and the KL of a tile; `next` is the one after it.
template <class T>
void forward_tile(const SampleKlArgs& args, const Tile& tile, const Tile& next,
                  ForwardBuffers<T>& b) {
  if (usual(args)) return usual_tile(args, tile, next, b);
  b.q.load_tile(args, tile, args.samples > 0);
  sample_tile(args, tile, b);
  if (args.reduce != Reduce::kNone) kl_tile(args, tile, b);
}

// The sum over the batch for each place in a sample: blocks of samples at fixed places.
template <class T>
bool kl_per_dim(const SampleKlArgs& args) {
  constexpr int64_t kBlocks = 16;
  const Shape& shape = args.shape;
  const int64_t width = shape.segments * shape.cols;
  const int64_t samples = shape.segments > 0 ? shape.rows / shape.segments : 0;
  const int64_t blocks = samples < kBlocks ? samples : kBlocks;
  Partials partials(blocks * width);
  if (partials.failed()) return false;
  double* sums = partials.get();
#pragma omp parallel for schedule(static) num_threads(args.threads) if (args.threads > 1)
  for (int64_t block = 0; block < blocks; ++block) {
    ForwardBuffers<T> b;
    const int64_t first = samples * block / blocks * shape.segments;
    const int64_t last = samples * (block + 1) / blocks * shape.segments;
    const Tiling tiling({last - first, shape.cols, shape.segments}, kTile<T>);
    for (int64_t index = 0; index < tiling.count; ++index) {
      Tile tile = tiling.tile(index);
      tile.row += first;
      forward_tile(args, tile, tile, b);
      for (int64_t r = 0; r < tile.rows; ++r) {
        double* to = sums + block * width + (tile.row + r) % shape.segments * shape.cols + tile.col;
        const T* from = b.kl + r * tile.cols;
        for (int64_t c = 0; c < tile.cols; ++c) to[c] += static_cast<double>(from[c]);
      }
    }
    nontemporal_fence();
  }
  T* out = static_cast<T*>(args.kl);
  for (int64_t i = 0; i < width; ++i) {
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) total += sums[block * width + i];
    out[i] = static_cast<T>(total * args.factor);
  }
  return true;
}

template <class T>
bool forward(const SampleKlArgs& args) {
  if (args.reduce == Reduce::kDim) return kl_per_dim<T>(args);
  const Tiling tiling(args.shape, kTile<T>);
  const bool sums = args.reduce == Reduce::kSample || args.reduce == Reduce::kSum;
  const bool rows = args.reduce == Reduce::kSample;
  const int64_t n = !sums ? 0 : rows ? slots(tiling) : tiling.count;
  Partials partials(n);
  if (partials.failed()) return false;
  double* slot = partials.get();
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  {
    ForwardBuffers<T> b;
#pragma omp for schedule(static) nowait
    for (int64_t index = 0; index < tiling.count; ++index) {
      const Tile tile = tiling.tile(index);
      forward_tile(args, tile, tiling.following(index), b);
      if (args.reduce == Reduce::kNone) continue;
      if (rows) {
        sum_rows(tiling, index, tile, b.kl, slot);
      } else if (sums) {
        slot[index] = sum(b.kl, tile.size());
      } else {
        T* out = static_cast<T*>(args.kl) + tile.start(args.shape);
        const T factor = T(args.factor);
        for (int64_t i = 0; i < tile.size(); ++i) out[i] = b.kl[i] * factor;
      }
    }
    nontemporal_fence();
  }
  if (rows) samples_from(tiling, slot, args.factor, static_cast<T*>(args.kl));
  if (args.reduce == Reduce::kSum)
    *static_cast<T*>(args.kl) = static_cast<T>(total_of(slot, n) * args.factor);
  return true;
}

}  // namespace

bool sample_kl(const SampleKlArgs& args) {
  return args.wide ? forward<double>(args) : forward<float>(args);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
