// The gradients of z and of KL(q || p) on the CPU.
#include "cpu/kernels.h"
#include "cpu/sample_kl.h"
#include "cpu/sums.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class T>
struct BackwardBuffers {
  Posterior<T> q;
  NoiseBuffer<T> noise;
  // From the KL, and from the samples.
  T upstream[kTile<T>], spare[kTile<T>], kl_mu[kTile<T>], kl_scale[kTile<T>],
      grad_prior_mu[kTile<T>], grad_prior_scale[kTile<T>];
  T z_mu[kTile<T>], z_scale[kTile<T>], derivative[kTile<T>], out[kTile<T>];
};

// The KL's part of the gradients; elements that the mask leaves out get 0.
template <class T>
void kl_gradients(const SampleKlArgs& args, const Tile& tile, BackwardBuffers<T>& b) {
  const int64_t n = tile.size();
  const T factor = T(args.factor);
  const T* upstream = load(args.grad_kl, tile, b.upstream);
  for (int64_t i = 0; i < n; ++i) b.upstream[i] = upstream[i] * factor;
  weigh({}, args.weight, tile, b.upstream, b.spare);
  const T* mu = b.q.mu;
  const T* logvar = b.q.scale.logvar;
  if (has_prior(args)) {
    const T* prior_mu = b.q.prior_mu;
    const T* prior_logvar = b.q.prior.logvar;
    for (int64_t i = 0; i < n; ++i) {
      const T g = b.upstream[i];
      T mu_slope, grown, shrunk;
      kl_prior_slopes(mu[i] - prior_mu[i], logvar[i], prior_logvar[i], mu_slope, grown, shrunk);
      b.kl_mu[i] = g * mu_slope;
      b.kl_scale[i] = T(0.5) * g * grown;
      b.grad_prior_mu[i] = -g * mu_slope;
      b.grad_prior_scale[i] = T(0.5) * g * shrunk;
    }
    if (const T* slope = b.q.prior.slope)
      for (int64_t i = 0; i < n; ++i) b.grad_prior_scale[i] *= slope[i];
    weigh(args.mask, {}, tile, b.grad_prior_mu, b.spare);
    weigh(args.mask, {}, tile, b.grad_prior_scale, b.spare);
  } else {
    for (int64_t i = 0; i < n; ++i) {
      b.kl_mu[i] = b.upstream[i] * mu[i];
      b.kl_scale[i] = T(0.5) * b.upstream[i] * expm1(logvar[i]);
    }
  }
  if (const T* slope = b.q.scale.slope)
    for (int64_t i = 0; i < n; ++i) b.kl_scale[i] *= slope[i];
  weigh(args.mask, {}, tile, b.kl_mu, b.spare);
  weigh(args.mask, {}, tile, b.kl_scale, b.spare);
}

template <class T>
void add_sample(int64_t n, const T* upstream, const T* eps, T* __restrict mu, T* __restrict scale) {
  for (int64_t i = 0; i < n; ++i) {
    mu[i] += upstream[i];
    scale[i] = madd(upstream[i], eps[i], scale[i]);
  }
}

// The same for several samples, whose noise is made again: dz/dscale's factors that they have in
// common are left to the end.
template <class T>
const T* samples_gradients(const SampleKlArgs& args, const Tile& tile, BackwardBuffers<T>& b) {
  const int64_t n = tile.size();
  memset(b.z_mu, 0, static_cast<size_t>(n) * sizeof(T));
  memset(b.derivative, 0, static_cast<size_t>(n) * sizeof(T));
  for (int64_t k = 0; k < args.samples; ++k) {
    Prefetch prefetch;
    if (k + 1 < args.samples) prefetch.read(args.grad_z, of_sample(tile, k + 1, args.shape));
    prefetch.issue(0, n);
    const T* upstream = load(args.grad_z, of_sample(tile, k, args.shape), b.spare);
    if (args.grad_scale) {
      add_sample(n, upstream, load_noise(args, tile, k, b.noise), b.z_mu, b.derivative);
    } else {
      for (int64_t i = 0; i < n; ++i) b.z_mu[i] += upstream[i];
    }
  }
  if (args.grad_scale) scale_derivative(args, b.q.scale, n, b.derivative, b.z_scale);
  return b.z_mu;
}

// z's part, in mu (dz/dmu = 1) and in scale. Where there is one sample its upstream gradient is the
// part in mu, and nothing is copied; dz/dscale is what the forward pass kept, or made of the same
// noise again.
template <class T>
const T* sample_gradients(const SampleKlArgs& args, const Tile& tile, BackwardBuffers<T>& b) {
  const int64_t n = tile.size();
  if (args.samples > 1) return samples_gradients(args, tile, b);
  const T* upstream = load(args.grad_z, tile, b.z_mu);
  if (!args.grad_scale) return upstream;
  const T* slope = static_cast<const T*>(args.kept);
  if (slope != nullptr) {
    slope += tile.start(args.shape);
  } else {
    scale_derivative(args, b.q.scale, n, load_noise(args, tile, 0, b.noise), b.derivative);
    slope = b.derivative;
  }
  for (int64_t i = 0; i < n; ++i) b.z_scale[i] = upstream[i] * slope[i];
  return upstream;
}

// The sum of the two parts, either of which may be absent.
template <class T>
void put(const Output& out, int64_t start, int64_t n, const T* first, const T* second, T* buffer) {
  if (!out) return;
  T* to = destination(out, start, buffer);
  if (first != nullptr && second != nullptr) {
    for (int64_t i = 0; i < n; ++i) to[i] = first[i] + second[i];
    return finish(out, start, n, to);
  }
  const T* only = first != nullptr ? first : second;
  if (to != buffer) {
    memcpy(to, only, static_cast<size_t>(n) * sizeof(T));
  } else {
    finish(out, start, n, only);
  }
}

// Adds a tile's values up over what the parameter `view` broadcasts to.
template <class T>
void add_up(double* sums, const View& view, const Tile& tile, const T* values) {
  if (sums == nullptr) return;
  for (int64_t r = 0; r < tile.rows; ++r) {
    double* to = sums + (tile.row + r) / view.div % view.mod * view.row_stride;
    const T* from = values + r * tile.cols;
    if (view.col_stride == 0) {
      *to += sum(from, tile.cols);
    } else {
      to += tile.col;
      for (int64_t c = 0; c < tile.cols; ++c) to[c] += static_cast<double>(from[c]);
    }
  }
}

// The backward pass of the usual call, where all is wanted and the derivative was kept.
bool usual_backward(const SampleKlArgs& args) {
  return usual(args) && args.kept != nullptr && args.grad_z && args.grad_kl && args.grad_mu &&
         args.grad_scale && !args.mask && !args.weight;
}

template <class T>
void usual_backward_loop(int64_t n, T factor, const T* __restrict mu, const T* __restrict logvar,
                         const T* __restrict grad_z, const T* __restrict grad_kl,
                         const T* derivative, T* __restrict grad_mu, T* grad_scale) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const T g = grad_kl[i] * factor;
    grad_mu[i] = madd(g, mu[i], grad_z[i]);
    grad_scale[i] = madd(T(0.5) * g, expm1(logvar[i]), grad_z[i] * derivative[i]);
  }
}

template <class T>
void usual_backward_tile(const SampleKlArgs& args, const Tile& tile, const Tile& next,
                         BackwardBuffers<T>& b) {
  const int64_t n = tile.size(), start = tile.start(args.shape);
  Prefetch prefetch;
  if (Prefetch::pays(args.shape, 5, sizeof(T), args.threads)) {
    prefetch.read(args.mu, next);
    prefetch.read(args.scale, next);
    prefetch.read(args.grad_z, next);
    prefetch.write({args.kept, args.wide ? DType::kF64 : DType::kF32, false},
                   next.start(args.shape));
    prefetch.write(args.grad_mu, next.start(args.shape));
  }
  const T* mu = load(args.mu, tile, b.q.mu_buffer);
  const T* logvar = load(args.scale, tile, b.q.scale_buffers.raw);
  const T* grad_z = load(args.grad_z, tile, b.z_mu);
  const T* grad_kl = load(args.grad_kl, tile, b.upstream);
  const T* derivative = static_cast<const T*>(args.kept) + start;
  T* grad_mu = destination(args.grad_mu, start, b.kl_mu);
  T* grad_scale = destination(args.grad_scale, start, b.kl_scale);
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t m = n - i < kChunk ? n - i : kChunk;
    prefetch.issue(i, m);
    usual_backward_loop(m, T(args.factor), mu + i, logvar + i, grad_z + i, grad_kl + i,
                        derivative + i, grad_mu + i, grad_scale + i);
  }
  finish(args.grad_mu, start, n, grad_mu);
  finish(args.grad_scale, start, n, grad_scale);
}

template <class T>
void backward_tile(const SampleKlArgs& args, const Tile& tile, const Tile& next, int64_t block,
                   BackwardBuffers<T>& b) {
  if (usual_backward(args)) return usual_backward_tile(args, tile, next, b);
  const int64_t n = tile.size(), start = tile.start(args.shape);
  const bool remake = args.grad_z && args.grad_scale && args.kept == nullptr;
  b.q.load_tile(args, tile, remake);
  if (args.grad_kl) kl_gradients(args, tile, b);
  const T* kl_mu = args.grad_kl ? b.kl_mu : nullptr;
  const T* kl_scale = args.grad_kl ? b.kl_scale : nullptr;
  const T* z_mu = args.grad_z ? sample_gradients(args, tile, b) : nullptr;
  const T* z_scale = args.grad_z ? b.z_scale : nullptr;
  put(args.grad_mu, start, n, kl_mu, z_mu, b.out);
  put(args.grad_scale, start, n, kl_scale, z_scale, b.out);
  if (!args.grad_kl) return;
  put<T>(args.grad_prior_mu, start, n, b.grad_prior_mu, nullptr, b.out);
  put<T>(args.grad_prior_scale, start, n, b.grad_prior_scale, nullptr, b.out);
  if (args.sum_prior_mu != nullptr)
    add_up(args.sum_prior_mu + block * args.prior_mu_size, args.prior_mu, tile, b.grad_prior_mu);
  if (args.sum_prior_scale != nullptr)
    add_up(args.sum_prior_scale + block * args.prior_scale_size, args.prior_scale, tile,
           b.grad_prior_scale);
}

template <class T>
bool backward(const SampleKlArgs& args) {
  const Tiling tiling(args.shape, kTile<T>);
  // Blocks of tiles at fixed places have sums of their own.
  const bool sums = args.sum_prior_mu != nullptr || args.sum_prior_scale != nullptr;
  const int64_t blocks = sums ? kPriorBlocks : tiling.count;
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  {
    BackwardBuffers<T> b;
#pragma omp for schedule(static) nowait
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = sums ? tiling.count * block / blocks : block;
      const int64_t last = sums ? tiling.count * (block + 1) / blocks : block + 1;
      for (int64_t index = first; index < last; ++index)
        backward_tile(args, tiling.tile(index), tiling.following(index), block, b);
    }
    nontemporal_fence();
  }
  return true;
}

}  // namespace

bool sample_kl_backward(const SampleKlArgs& args) {
  return args.wide ? backward<double>(args) : backward<float>(args);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
