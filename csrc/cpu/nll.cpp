// Elementwise likelihoods on the CPU: the loss and, in the same pass over memory, its gradients.
#include "cpu/kernels.h"
#include "cpu/noise.h"
#include "cpu/sums.h"
#include "math/likelihoods.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class T>
struct Buffers {
  T params[kMaxParams][kTile<T>], grads[kMaxParams][kTile<T>];
  T target[kTile<T>], value[kTile<T>], spare[kTile<T>];
  NoiseBuffer<T> noise;
};

// The first of the ascending columns from `first` to `last` that is not below `col`.
VAEFAST_FN const int64_t* lower_bound(const int64_t* first, const int64_t* last, int64_t col) {
  while (first < last) {
    const int64_t* middle = first + (last - first) / 2;
    if (*middle < col) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first;
}

// The tile of a CSR matrix: what is not stored is 0.
template <class T>
const T* scatter(const NllArgs& args, const Tile& tile, T* x) {
  const char* values = static_cast<const char*>(args.target.data);
  const int64_t size = size_of(args.target.dtype), end = tile.col + tile.cols;
  const T divisor = static_cast<T>(args.target.divisor);
  for (int64_t i = 0; i < tile.size(); ++i) x[i] = T(0);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = (tile.row + r) % args.target_rows;
    const int64_t* last = args.columns + args.row_starts[row + 1];
    const int64_t* k = lower_bound(args.columns + args.row_starts[row], last, tile.col);
    for (; k < last && *k < end; ++k) {
      T* to = x + r * tile.cols + (*k - tile.col);
      widen(args.target.dtype, values + (k - args.columns) * size, to, 1);
      *to /= divisor;
    }
  }
  return x;
}

// The target's tile, drawn from its intensities where there is a noise state. The grid's rows may
// repeat the target's (several samples of z for one x): noise belongs to the target's place.
template <class T>
const T* load_target(const NllArgs& args, const Tile& tile, Buffers<T>& b) {
  if (args.row_starts != nullptr) return scatter(args, tile, b.target);
  const T* x = load(args.target, tile, b.target);
  if (args.state.words == nullptr) return x;
  const Shape shape{args.target_rows, args.shape.cols, args.shape.segments};
  int64_t done = 0;
  while (done < tile.rows) {
    const int64_t row = (tile.row + done) % args.target_rows;
    const int64_t left = args.target_rows - row, rows = tile.rows - done;
    const Tile piece{row, rows < left ? rows : left, tile.col, tile.cols};
    const T* u = tile_noise(args.state, shape, piece, 0, static_cast<uint32_t>(Purpose::kBinarize),
                            false, b.noise);
    const T* from = x + done * tile.cols;
    T* to = b.target + done * tile.cols;
    for (int64_t i = 0; i < piece.size(); ++i) to[i] = u[i] <= from[i] ? T(1) : T(0);
    done += piece.rows;
  }
  return b.target;
}

// The likelihood by value: behind a reference its numbers might be what is written, and one with
// seven of them then ran as a scalar loop (45 ns an element for 4).
template <class F, bool kGrad, Counts kCounts, class T>
void evaluate(const F likelihood, int64_t n, const T* x, const T* const* params, T* value,
              T* const* grads, T factor, const Prefetch& prefetch) {
  constexpr int kParams = F::kParams;
  constexpr bool kTwoLoops = kInnerGrads<F> >= 0;
  // Derivatives that the first loop makes.
  constexpr int kMade = kTwoLoops ? kInnerGrads<F> : kParams;
  const T* p0 = params[0];
  const T* p1 = params[kParams > 1 ? 1 : 0];
  const T* p2 = params[kParams > 2 ? 2 : 0];
  T* g0 = grads[0];
  T* g1 = grads[kParams > 1 ? 1 : 0];
  T* g2 = grads[kParams > 2 ? 2 : 0];
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t last = n - first < kChunk ? n : first + kChunk;
    prefetch.issue(first, last - first);
    // No two of these arrays overlap, which GCC would otherwise test for at run time, or give up.
#pragma GCC ivdep
    for (int64_t i = first; i < last; ++i) {
      const T theta[3] = {p0[i], p1[i], p2[i]};
      const T count = kCounts == Counts::kZero ? T(0) : x[i];
      T grad[3] = {};
      if constexpr (kTwoLoops) {
        value[i] = likelihood.template inner<kGrad, kCounts>(count, theta, grad);
      } else if constexpr (kCounts == Counts::kAny) {
        value[i] = likelihood.template nll<kGrad>(count, theta, grad);
      } else {
        value[i] = likelihood.template nll<kGrad, kCounts>(count, theta, grad);
      }
      if constexpr (kGrad && kMade > 0) g0[i] = grad[0] * factor;
      if constexpr (kGrad && kMade > 1) g1[i] = grad[1] * factor;
      if constexpr (kGrad && kMade > 2) g2[i] = grad[2] * factor;
    }
    if constexpr (kTwoLoops) {
#pragma GCC ivdep
      for (int64_t i = first; i < last; ++i) {
        const T theta[3] = {p0[i], p1[i], p2[i]};
        const T count = kCounts == Counts::kZero ? T(0) : x[i];
        T grad[3] = {};
        if constexpr (kGrad && kMade > 0) grad[0] = g0[i];
        if constexpr (kGrad && kMade > 1) grad[1] = g1[i];
        value[i] = F::template outer<kGrad, kCounts>(count, value[i], theta, grad);
        if constexpr (kGrad) g0[i] = kMade > 0 ? grad[0] : grad[0] * factor;
        if constexpr (kGrad && kParams > 1) g1[i] = kMade > 1 ? grad[1] : grad[1] * factor;
        if constexpr (kGrad && kParams > 2) g2[i] = grad[2] * factor;
      }
    }
  }
}

// The elements of a tile whose count is not 0, side by side.
template <class T>
struct NonzeroCounts {
  // Padded to whole vectors: the rest of a loop over fewer is scalar.
  static constexpr int64_t kLanes = 16, kRoom = kTile<T> + kLanes;
  int32_t places[kRoom];
  T x[kRoom], params[kMaxParams][kRoom], value[kRoom], grads[kMaxParams][kRoom];

  // How many there are.
  int64_t find(const T* from, int64_t n) {
    int64_t count = 0, i = 0;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == sizeof(float)) {
      __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
      for (; i + 16 <= n; i += 16) {
        const __mmask16 other =
            _mm512_cmp_ps_mask(_mm512_loadu_ps(from + i), _mm512_setzero_ps(), _CMP_NEQ_UQ);
        _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi32(other, place));
        count += static_cast<int64_t>(_mm_popcnt_u32(other));
        place = _mm512_add_epi32(place, _mm512_set1_epi32(16));
      }
    }
#endif
    for (; i < n; ++i) {
      places[count] = static_cast<int32_t>(i);
      count += from[i] == T(0) ? 0 : 1;
    }
    return count;
  }

  void gather(const T* from, int64_t n, T* to) const {
    for (int64_t i = 0; i < n; ++i) to[i] = from[places[i]];
    for (int64_t i = n; i % kLanes != 0; ++i) to[i] = T(1);
  }

  void scatter(const T* from, int64_t n, T* to) const {
    for (int64_t i = 0; i < n; ++i) to[places[i]] = from[i];
  }
};

// As `evaluate`; where at least half of the counts are 0 all are first taken for it, then the
// others done by themselves.
template <class F, bool kGrad, class T>
void evaluate_counts(const F likelihood, int64_t n, const T* x, const T* const* params, T* value,
                     T* const* grads, T factor, const Prefetch& prefetch) {
  constexpr int kParams = F::kParams;
  NonzeroCounts<T> others;
  const int64_t count = others.find(x, n);
  if (2 * count > n)
    return evaluate<F, kGrad, Counts::kAny>(likelihood, n, x, params, value, grads, factor,
                                            prefetch);
  // Before the gradients are written: they may lie where the parameters do.
  const T* dense[kMaxParams];
  T* dense_grads[kMaxParams];
  others.gather(x, count, others.x);
  for (int j = 0; j < kParams; ++j) {
    others.gather(params[j], count, others.params[j]);
    dense[j] = others.params[j];
    dense_grads[j] = others.grads[j];
  }
  evaluate<F, kGrad, Counts::kZero>(likelihood, n, x, params, value, grads, factor, prefetch);
  const int64_t padded = (count + others.kLanes - 1) / others.kLanes * others.kLanes;
  evaluate<F, kGrad, Counts::kOther>(likelihood, padded, others.x, dense, others.value, dense_grads,
                                     factor, {});
  others.scatter(others.value, count, value);
  if constexpr (kGrad)
    for (int j = 0; j < kParams; ++j) others.scatter(others.grads[j], count, grads[j]);
}

// A likelihood's loop over a tile. All else is compiled once for every likelihood.
template <class T>
using Evaluate = void (*)(const double* numbers, int64_t n, const T* x, const T* const* params,
                          T* value, T* const* grads, T factor, const Prefetch& prefetch);

template <class F, bool kGrad, class T>
void evaluate_tile(const double* numbers, int64_t n, const T* x, const T* const* params, T* value,
                   T* const* grads, T factor, const Prefetch& prefetch) {
  const F likelihood(numbers);
  if constexpr (kSplitsZeros<F>) {
    evaluate_counts<F, kGrad>(likelihood, n, x, params, value, grads, factor, prefetch);
  } else {
    evaluate<F, kGrad, Counts::kAny>(likelihood, n, x, params, value, grads, factor, prefetch);
  }
}

template <class T>
struct Form {
  int params;
  Evaluate<T> value, with_grads;
};

template <class F, class T>
Form<T> form_of() {
  constexpr Evaluate<T> with_grads = &evaluate_tile<F, true, T>;
  // In double gradients are always made: a loop less to compile for each likelihood.
  if constexpr (sizeof(T) == sizeof(double)) {
    return {F::kParams, with_grads, with_grads};
  } else {
    return {F::kParams, &evaluate_tile<F, false, T>, with_grads};
  }
}

template <class T>
bool run(const NllArgs& args, const Form<T>& form) {
  const Tiling tiling(args.shape, kTile<T>);
  const T grad_factor = T(args.grad_factor);
  const bool prefetches = Prefetch::pays(args.shape, 1 + 2 * form.params, sizeof(T), args.threads);
  bool any_grad = false;
  for (int j = 0; j < form.params; ++j) any_grad = any_grad || args.grads[j];
  const Evaluate<T> evaluate = any_grad ? form.with_grads : form.value;
  const bool rows = args.reduce == Reduce::kSample;
  const int64_t n_slots = slots(tiling);
  const int64_t n_sums = args.reduce == Reduce::kElem ? 0 : rows ? n_slots : tiling.count;
  Partials sums(n_sums);
  const bool scalar_grad = args.scalar >= 0 && args.grads[args.scalar];
  Partials scalar_sums(scalar_grad ? n_slots : 0);
  if (sums.failed() || scalar_sums.failed()) return false;
  double* slot = sums.get();
  double* scalar_slot = scalar_sums.get();
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
  {
    Buffers<T> b;
#pragma omp for schedule(static) nowait
    for (int64_t index = 0; index < tiling.count; ++index) {
      const Tile tile = tiling.tile(index);
      const int64_t n = tile.size(), start = tile.start(args.shape);
      const T* x = load_target(args, tile, b);
      const T* params[kMaxParams];
      T* grads[kMaxParams];
      for (int j = 0; j < form.params; ++j) {
        params[j] = load(args.params[j], tile, b.params[j]);
        // Weighing comes after, so it must find the gradient in memory of its own type.
        grads[j] = args.grads[j] && j != args.scalar ? destination(args.grads[j], start, b.grads[j])
                                                     : b.grads[j];
      }
      const Tile next = tiling.following(index);
      Prefetch prefetch;
      if (prefetches && args.row_starts == nullptr) prefetch.read(args.target, next);
      for (int j = 0; prefetches && j < form.params; ++j) {
        prefetch.read(args.params[j], next);
        if (j != args.scalar) prefetch.write(args.grads[j], next.start(args.shape));
      }
      const bool into_loss = args.reduce == Reduce::kElem;
      T* value = into_loss ? static_cast<T*>(args.loss) + start : b.value;
      evaluate(args.numbers, n, x, params, value, grads, grad_factor, prefetch);
      weigh(args.mask, args.weight, tile, value, b.spare);
      for (int j = 0; j < form.params; ++j) {
        if (!args.grads[j]) continue;
        weigh(args.mask, args.weight, tile, grads[j], b.spare);
        if (j == args.scalar) {
          sum_rows(tiling, index, tile, grads[j], scalar_slot);
        } else {
          finish(args.grads[j], start, n, grads[j]);
        }
      }
      if (args.reduce == Reduce::kElem) {
        const T factor = T(args.factor);
        for (int64_t i = 0; i < n; ++i) value[i] *= factor;
      } else if (rows) {
        sum_rows(tiling, index, tile, value, slot);
      } else {
        slot[index] = sum(value, n);
      }
    }
    nontemporal_fence();
  }
  if (rows) samples_from(tiling, slot, args.factor, static_cast<T*>(args.loss));
  if (args.reduce == Reduce::kSum)
    *static_cast<T*>(args.loss) = static_cast<T>(total_of(slot, n_sums) * args.factor);
  if (scalar_grad)
    samples_from(tiling, scalar_slot, 1.0, static_cast<T*>(args.grads[args.scalar].data));
  return true;
}

template <class T>
bool choose(const NllArgs& args) {
  int form = 0;
#define VAEFAST_CASE(name) \
  if (args.form == form++) return run<T>(args, form_of<name<T>, T>());
  VAEFAST_LIKELIHOODS(VAEFAST_CASE)
#undef VAEFAST_CASE
  return false;
}

}  // namespace

bool nll(const NllArgs& args) { return args.wide ? choose<double>(args) : choose<float>(args); }

}  // namespace VAEFAST_ISA
}  // namespace vaefast
