// Mixtures of discretised logistics on the CPU, in the packed layout of PixelCNN++.
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "math/likelihoods_pixels.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// Of `mixtures` M and three channels: [M logits | per channel M means, M log-scales, M
// coefficients]; of one channel: [M logits | M means | M log-scales].
struct Layout {
  int64_t mixtures, channels;

  int64_t group(int64_t channel, int64_t which) const {
    return mixtures * (1 + (channels > 1 ? 3 : 2) * channel + which);
  }
  int64_t mean(int64_t c) const { return group(c, 0); }
  int64_t log_scale(int64_t c) const { return group(c, 1); }
  // Of channel 1 on channel 0, of 2 on 0, of 2 on 1.
  int64_t coefficient(int64_t k) const { return group(k, 2); }
};

// A run of positions: every parameter as up to kRun values side by side, then, in place, its
// gradient. A shorter run is padded with zeros to whole vectors of kLanes.
constexpr int64_t kRun = 128, kLanes = 16;
// A power of two would put all parameters of a position into one set of the cache.
constexpr int64_t kStride = kRun + kLanes;

template <class T>
struct Pixels {
  T a, b, low, bin, top, half_bin, log_bin, least;
  Layout layout;

  explicit Pixels(const double* numbers)
      : a(T(numbers[0])),
        b(T(numbers[1])),
        low(T(numbers[2])),
        bin(T(numbers[3])),
        top(T(numbers[4])),
        half_bin(T(0.5 * numbers[3])),
        log_bin(T(log(numbers[3]))),
        least(T(numbers[5])),
        layout{static_cast<int64_t>(numbers[6]), static_cast<int64_t>(numbers[7])} {}
};

template <class T>
struct Run {
  T x[3][kRun], level[3][kRun];
  T highest[kRun], prior[kRun], joint[kRun], joint_highest[kRun], factor[kRun], value[kRun];
};

int64_t padded(const Positions& p) { return (p.count + kLanes - 1) / kLanes * kLanes; }

// The i-th of a run's positions among the target's.
int64_t place_of(const RowNllArgs& args, const Positions& p, int64_t i) {
  return args.inner > 1 ? p.place(args) + i : (p.row + i) % args.target_rows;
}

template <class T>
void read_channel(const RowNllArgs& args, int64_t channels, const Positions& p, int64_t c, T* x) {
  const char* target = static_cast<const char*>(args.target);
  const int64_t size = size_of(args.target_dtype);
  if (args.inner > 1) {
    const int64_t at = (p.row % args.target_rows * channels + c) * args.inner + p.at;
    widen(args.target_dtype, target + at * size, x, p.count);
  } else {
    for (int64_t i = 0; i < p.count; ++i) {
      const int64_t at = place_of(args, p, i) * channels + c;
      widen(args.target_dtype, target + at * size, x + i, 1);
    }
  }
  for (int64_t i = p.count; i < padded(p); ++i) x[i] = T(0);
}

// The pixels' levels, and their values in the units of the means.
template <class T>
void read_pixels(const RowNllArgs& args, const Pixels<T>& pixels, const Positions& p, Run<T>& run) {
  for (int64_t c = 0; c < pixels.layout.channels; ++c) {
    read_channel(args, pixels.layout.channels, p, c, run.x[c]);
    for (int64_t i = 0; i < padded(p); ++i) {
      const T level = level_of(run.x[c][i], pixels.a, pixels.b, pixels.top);
      run.level[c][i] = level;
      run.x[c][i] = madd(level, pixels.bin, pixels.low);
    }
  }
}

// n bins around loc = mean + t0 x0 + t1 x1: adds the loss to value; the derivatives go to grad_mean
// and, in its own place, to scale.
template <bool kGrad, class T>
void bins(const Pixels<T>& pixels, int64_t n, const T* x, const T* level, const T* mean,
          const T* t0, const T* t1, const T* x0, const T* x1, T* scale, T* value, T* grad_mean) {
  // By value: what is read through a reference might be what is written.
  const T least = pixels.least, half_bin = pixels.half_bin, log_bin = pixels.log_bin;
  const T top = pixels.top;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const T loc = mean[i] + t0[i] * x0[i] + t1[i] * x1[i];
    const T raw = scale[i];
    const bool low = raw < least;
    T gl = T(0), gs = T(0);
    const T loss = logistic_bin_nll<kGrad>(x[i] - loc, half_bin, log_bin, low ? least : raw,
                                           level[i] <= T(0), level[i] >= top, gl, gs);
    value[i] += loss;
    if constexpr (kGrad) {
      grad_mean[i] = gl;
      scale[i] = low ? T(0) : gs;
    }
  }
}

// tanh k and, with kGrad, its derivative; 0 where there is no such coefficient.
template <bool kGrad, class T>
void tanh_of(bool there, int64_t n, const T* k, T* t, T* slope) {
  if (!there) {
    for (int64_t i = 0; i < n; ++i) t[i] = T(0);
  } else if constexpr (kGrad) {
    T rest;
    for (int64_t i = 0; i < n; ++i) t[i] = tanh_and_slope(k[i], rest, slope[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) t[i] = tanh(k[i]);
  }
}

// Channel c of component m: adds its loss to value; with kGrad puts the derivatives of the loss in
// the place of the parameters, those of the coefficients included.
template <bool kGrad, class T>
void component(const Pixels<T>& pixels, const Run<T>& run, int64_t n, int64_t c, int64_t m,
               T* params, T* value) {
  const Layout& layout = pixels.layout;
  T* mean = params + kStride * (layout.mean(c) + m);
  T* scale = params + kStride * (layout.log_scale(c) + m);
  // Channel 1 leans on channel 0, channel 2 on both.
  T* k0 = c > 0 ? params + kStride * (layout.coefficient(c == 1 ? 0 : 1) + m) : mean;
  T* k1 = c > 1 ? params + kStride * (layout.coefficient(2) + m) : mean;
  const T* x0 = run.x[0];
  const T* x1 = run.x[c > 1 ? 1 : 0];
  const T on0 = c > 0 ? T(1) : T(0), on1 = c > 1 ? T(1) : T(0);
  T t0[kRun], t1[kRun], slope0[kRun], slope1[kRun];
  tanh_of<kGrad>(c > 0, n, k0, t0, slope0);
  tanh_of<kGrad>(c > 1, n, k1, t1, slope1);
  T grad_mean[kRun];
  bins<kGrad>(pixels, n, run.x[c], run.level[c], mean, t0, t1, run.x[0], x1, scale, value,
              grad_mean);
  if constexpr (kGrad) {
    memcpy(mean, grad_mean, static_cast<size_t>(n) * sizeof(T));
    if (c > 0)
      for (int64_t i = 0; i < n; ++i) k0[i] = on0 * grad_mean[i] * x0[i] * slope0[i];
    if (c > 1)
      for (int64_t i = 0; i < n; ++i) k1[i] = on1 * grad_mean[i] * x1[i] * slope1[i];
  }
}

// Asks for a share of the parameters of the run after this one. They lie far from each other, a
// line or two in each place, which the hardware does not foresee; and all at once they would be
// waited for.
template <class T>
struct Prefetch {
  const RowNllArgs& args;
  Positions next;

  void issue(int64_t part, int64_t parts) const {
    const int64_t bytes = next.count * size_of(args.dtype);
    for (int64_t c = args.classes * part / parts; c < args.classes * (part + 1) / parts; ++c)
      fetch(params_at<T>(args, next.row, c, next.at), bytes);
  }
};

// -log sum_m softmax(logits)_m e^-loss_m, and the share of the gradient that each component has.
template <bool kGrad, class T>
void mix(const Pixels<T>& pixels, int64_t n, const Prefetch<T>& prefetch, Run<T>& run, T* params,
         T* losses) {
  const int64_t mixtures = pixels.layout.mixtures, channels = pixels.layout.channels;
  for (int64_t m = 0; m < mixtures; ++m) {
    prefetch.issue(m, mixtures);
    for (int64_t i = 0; i < n; ++i) losses[kStride * m + i] = T(0);
    for (int64_t c = 0; c < channels; ++c)
      component<kGrad>(pixels, run, n, c, m, params, losses + kStride * m);
  }
  for (int64_t i = 0; i < n; ++i) {
    run.highest[i] = run.joint_highest[i] = -T(kInf);
    run.prior[i] = run.joint[i] = T(0);
  }
  for (int64_t m = 0; m < mixtures; ++m) {
    const T* logit = params + kStride * m;
    for (int64_t i = 0; i < n; ++i) {
      const T both = logit[i] - losses[kStride * m + i];
      run.highest[i] = logit[i] > run.highest[i] ? logit[i] : run.highest[i];
      run.joint_highest[i] = both > run.joint_highest[i] ? both : run.joint_highest[i];
    }
  }
  for (int64_t m = 0; m < mixtures; ++m) {
    T* logit = params + kStride * m;
    T* loss = losses + kStride * m;
    for (int64_t i = 0; i < n; ++i) {
      const T p = exp(logit[i] - run.highest[i]);
      const T q = exp(logit[i] - loss[i] - run.joint_highest[i]);
      run.prior[i] += p;
      run.joint[i] += q;
      logit[i] = p;
      loss[i] = q;
    }
  }
  for (int64_t i = 0; i < n; ++i)
    run.value[i] = (run.highest[i] - run.joint_highest[i]) + log(run.prior[i] / run.joint[i]);
  if constexpr (kGrad) {
    const int64_t each = channels > 1 ? 3 : 2;
    for (int64_t i = 0; i < n; ++i) {
      run.prior[i] = run.factor[i] / run.prior[i];
      run.joint[i] = run.factor[i] / run.joint[i];
    }
    for (int64_t m = 0; m < mixtures; ++m) {
      T* logit = params + kStride * m;
      T* loss = losses + kStride * m;
      for (int64_t i = 0; i < n; ++i) {
        loss[i] *= run.joint[i];
        logit[i] = logit[i] * run.prior[i] - loss[i];
      }
      for (int64_t g = 0; g < channels * each; ++g) {
        T* grad = params + kStride * (mixtures * (1 + g) + m);
        for (int64_t i = 0; i < n; ++i) grad[i] = loss[i] == T(0) ? T(0) : grad[i] * loss[i];
      }
    }
  }
}

template <class T>
struct Scratch {
  T* params;
  T* losses;
  T* line;

  Scratch(const RowNllArgs& args, int64_t mixtures) {
    const size_t lines = static_cast<size_t>(args.classes + mixtures);
    const size_t bytes = (lines * kStride + static_cast<size_t>(args.classes)) * sizeof(T);
    params = static_cast<T*>(malloc(bytes));
    losses = params + kStride * args.classes;
    line = losses + kStride * mixtures;
  }
  ~Scratch() { free(params); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// Positions side by side are loaded as they lie; alone in their rows (channels last) kRun rows are
// transposed.
template <class T>
void read_params(const RowNllArgs& args, const Positions& p, Scratch<T>& s) {
  if (args.inner > 1) {
    for (int64_t c = 0; c < args.classes; ++c) {
      widen(args.dtype, params_at<T>(args, p.row, c, p.at), s.params + kStride * c, p.count);
      for (int64_t i = p.count; i < padded(p); ++i) s.params[kStride * c + i] = T(0);
    }
    return;
  }
  for (int64_t i = 0; i < padded(p); ++i) {
    if (i < p.count) {
      const T* line =
          in_type(args.dtype, params_at<T>(args, p.row + i, 0, 0), s.line, args.classes);
      for (int64_t c = 0; c < args.classes; ++c) s.params[kStride * c + i] = line[c];
    } else {
      for (int64_t c = 0; c < args.classes; ++c) s.params[kStride * c + i] = T(0);
    }
  }
}

template <class T>
void write_grads(const RowNllArgs& args, const Positions& p, Scratch<T>& s) {
  if (args.inner > 1) {
    for (int64_t c = 0; c < args.classes; ++c) {
      const int64_t start = (p.row * args.classes + c) * args.inner + p.at;
      put_out(args.grad, start, p.count, s.params + kStride * c);
    }
    return;
  }
  for (int64_t i = 0; i < p.count; ++i) {
    for (int64_t c = 0; c < args.classes; ++c) s.line[c] = s.params[kStride * c + i];
    narrow(s.line, args.grad.dtype, grad_at(args, p.row + i, 0, 0), args.classes);
  }
}

template <class T>
void evaluate(const RowNllArgs& args, const Pixels<T>& pixels, const Values<T>& values,
              const Positions& p, const Prefetch<T>& prefetch, Run<T>& run, Scratch<T>& s) {
  read_pixels(args, pixels, p, run);
  read_params(args, p, s);
  for (int64_t i = 0; i < padded(p); ++i) {
    const int64_t place = place_of(args, p, i < p.count ? i : 0);
    run.factor[i] = weight_of<T>(args, place) * static_cast<T>(args.grad_factor);
  }
  if (args.grad) {
    mix<true>(pixels, padded(p), prefetch, run, s.params, s.losses);
  } else {
    mix<false>(pixels, padded(p), prefetch, run, s.params, s.losses);
  }
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t place = place_of(args, p, i);
    const double weight = static_cast<double>(weight_of<T>(args, place));
    const bool keep = kept(args, place);
    const int64_t index = args.inner > 1 ? p.row * args.inner + p.at + i : p.row + i;
    values.set(args, index, keep ? static_cast<double>(run.value[i]) * weight : 0);
    if (keep || !args.grad) continue;
    for (int64_t c = 0; c < args.classes; ++c) s.params[kStride * c + i] = T(0);
  }
  if (args.grad) write_grads(args, p, s);
}

template <class T>
bool run(const RowNllArgs& args) {
  Partials scratch(args.reduce == Reduce::kElem ? 0 : args.rows * args.inner);
  if (scratch.failed()) return false;
  const Values<T> values{static_cast<T*>(args.loss), scratch.get()};
  const Pixels<T> pixels(args.numbers);
  const bool alone = args.inner == 1;
  const Runs runs(args, kRun);
  const int64_t count = alone ? (args.rows + kRun - 1) / kRun : runs.count;
  bool failed = false;
#pragma omp parallel num_threads(args.threads) if (args.threads > 1) reduction(|| : failed)
  {
    Scratch<T> s(args, pixels.layout.mixtures);
    Run<T> one;
    failed = s.params == nullptr;
#pragma omp for schedule(static) nowait
    for (int64_t index = 0; index < count; ++index) {
      if (s.params == nullptr) continue;
      const int64_t row = index * kRun, left = args.rows - row;
      const Positions p =
          alone ? Positions{row, 0, left < kRun ? left : kRun} : runs.at(args, index);
      const Positions next =
          alone || index + 1 == count ? Positions{0, 0, 0} : runs.at(args, index + 1);
      evaluate(args, pixels, values, p, Prefetch<T>{args, next}, one, s);
    }
    nontemporal_fence();
  }
  if (failed) return false;
  reduce_values<T>(args, scratch.get());
  return true;
}

}  // namespace

bool logistic_mixture_nll(const RowNllArgs& args) {
  return args.wide ? run<double>(args) : run<float>(args);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
