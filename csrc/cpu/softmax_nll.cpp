// Categorical and multinomial likelihoods on the CPU: log-softmax, loss and gradient, with nothing
// of the logits' size beside the gradient.
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "math/bounded.h"
#include "math/gamma.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class T>
T max_of(const T* values, int64_t n) {
  typedef T Lanes __attribute__((vector_size(64)));
  constexpr int64_t kLanes = 64 / sizeof(T);
  T highest = values[0];
  int64_t i = 0;
  if (n >= kLanes) {
    Lanes top, lanes;
    memcpy(&top, values, sizeof top);
    for (i = kLanes; i + kLanes <= n; i += kLanes) {
      memcpy(&lanes, values + i, sizeof lanes);
      top = lanes > top ? lanes : top;
    }
    for (int64_t j = 0; j < kLanes; ++j) highest = top[j] > highest ? top[j] : highest;
  }
  for (; i < n; ++i) highest = values[i] > highest ? values[i] : highest;
  return highest;
}

// log(x!) of the counts that are not 0 or 1, in double: in float the sum over a row of large counts
// would keep no digit of the loss.
template <class T>
double log_factorials(const T* x, int64_t n, double* listed) {
  int32_t more = 0;
  for (int64_t i = 0; i < n; ++i) more += x[i] != T(0) && x[i] != T(1) ? 1 : 0;
  if (more == 0) return 0;
  int64_t k = 0;
  for (int64_t i = 0; i < n; ++i) {
    listed[k] = static_cast<double>(x[i]) + 1;
    k += x[i] != T(0) && x[i] != T(1) ? 1 : 0;
  }
  for (int64_t i = 0; i < k; ++i) listed[i] = lgamma(listed[i]);
  return sum_wide(listed, k);
}

int64_t index_of(DType dtype, const void* target, int64_t at) {
  switch (dtype) {
    case DType::kI64:
      return static_cast<const int64_t*>(target)[at];
    case DType::kI32:
      return static_cast<const int32_t*>(target)[at];
    default:
      return static_cast<const uint8_t*>(target)[at];
  }
}

template <class T>
T value_at(DType dtype, const char* base, int64_t at) {
  T value;
  widen(dtype, base + at * size_of(dtype), &value, 1);
  return value;
}

// Rows whose classes lie side by side, in blocks. The first pass puts e^(logit - highest so far)
// where the gradient will be, the second finds it in the cache; a gradient of another type cannot
// hold it, and the logits are read again.
template <class T>
struct DenseRow {
  static constexpr int64_t kBlock = 1024;
  T logits[kBlock], counts[kBlock], work[kBlock];
  double listed[kBlock + 1];

  const RowNllArgs& args;
  // Per block: the highest logit so far, which its exponentials are relative to.
  Partials tops;
  const bool kept_exps;
  int64_t row, target_row;
  const char *source, *counted;
  T highest = -GammaConstants<T>::infinity;
  double normaliser = 0, total = 0, dot = 0, factorials = 0;

  explicit DenseRow(const RowNllArgs& a)
      : args(a),
        tops(a.classes / kBlock + 1),
        kept_exps(a.grad && same_type(a.grad.dtype, logits)) {}

  const T* counts_at(int64_t c, int64_t n) {
    return in_type(args.target_dtype, counted + c * size_of(args.target_dtype), counts, n);
  }

  void read(int64_t r) {
    row = r;
    target_row = r % args.target_rows;
    source = params_at<T>(args, r, 0, 0);
    counted = static_cast<const char*>(args.target) +
              target_row * args.classes * size_of(args.target_dtype);
    highest = -GammaConstants<T>::infinity;
    normaliser = total = dot = factorials = 0;
    const bool whole = args.numbers[0] != 0;
    // Before the logits are overwritten, where the gradient lies there.
    if (args.form == RowForm::kCategorical) index();
    if (args.form == RowForm::kMultinomialSparse) sparse();
    for (int64_t c = 0; c < args.classes; c += kBlock) {
      const int64_t left = args.classes - c, n = left < kBlock ? left : kBlock;
      const T* l = in_type(args.dtype, source + c * size_of(args.dtype), logits, n);
      const T top = max_of(l, n);
      if (top > highest) {
        normaliser *= static_cast<double>(exp(highest - top));
        highest = top;
      }
      if (args.form == RowForm::kMultinomial) {
        const T* x = counts_at(c, n);
        total += sum(x, n);
        for (int64_t i = 0; i < n; ++i) work[i] = x[i] == T(0) ? T(0) : x[i] * l[i];
        dot += sum(work, n);
        if (whole) factorials += log_factorials(x, n, listed);
      }
      // Of -inf alone, so far: any finite number gives 0.
      const T m = highest == -GammaConstants<T>::infinity ? T(0) : highest;
      tops.get()[c / kBlock] = static_cast<double>(m);
      T* e = kept_exps ? reinterpret_cast<T*>(grad_at(args, row, c, 0)) : work;
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) e[i] = exp_or_zero(l[i] - m);
      normaliser += sum(e, n);
    }
  }

  void index() {
    const int64_t c = index_of(args.target_dtype, args.target, target_row);
    total = 1;
    // No class: no logit is read, and the loss says so.
    dot =
        c >= 0 && c < args.classes ? static_cast<double>(value_at<T>(args.dtype, source, c)) : kNan;
  }

  void sparse() {
    const char* values = static_cast<const char*>(args.target);
    for (int64_t k = args.row_starts[target_row]; k < args.row_starts[target_row + 1]; ++k) {
      const int64_t c = args.columns[k];
      const double x = static_cast<double>(value_at<T>(args.target_dtype, values, k));
      total += x;
      if (x == 0) continue;
      dot += c >= 0 && c < args.classes
                 ? x * static_cast<double>(value_at<T>(args.dtype, source, c))
                 : kNan;
      if (args.numbers[0] != 0 && x != 1) factorials += lgamma(x + 1);
    }
  }

  double loss() const {
    const double log_z = static_cast<double>(highest) + log(normaliser);
    const double coefficient = args.numbers[0] != 0 ? lgamma(total + 1) - factorials : 0;
    return total * log_z - dot - coefficient;
  }

  // scale (total softmax - counts).
  void write_grad(double scale) {
    const double whole_share = scale * total / normaliser;
    const T each = static_cast<T>(scale);
    for (int64_t c = 0; c < args.classes; c += kBlock) {
      const int64_t left = args.classes - c, n = left < kBlock ? left : kBlock;
      const double top = tops.get()[c / kBlock];
      const T share = static_cast<T>(exp(top - static_cast<double>(highest)) * whole_share);
      char* to = grad_at(args, row, c, 0);
      T* g = kept_exps ? reinterpret_cast<T*>(to) : work;
      if (!kept_exps) {
        const T* l = in_type(args.dtype, source + c * size_of(args.dtype), logits, n);
        const T m = static_cast<T>(top);
        for (int64_t i = 0; i < n; ++i) g[i] = exp_or_zero(l[i] - m);
      }
      if (args.form == RowForm::kMultinomial) {
        const T* x = counts_at(c, n);
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) g[i] = g[i] * share - each * x[i];
      } else {
        for (int64_t i = 0; i < n; ++i) g[i] *= share;
        subtract(c, n, g, each);
      }
      if (g == work) narrow(g, args.grad.dtype, to, n);
    }
  }

  // The target's own entries among the n classes from c on.
  int64_t next = 0;
  void subtract(int64_t c, int64_t n, T* g, T each) {
    if (args.form == RowForm::kCategorical) {
      const int64_t hit = index_of(args.target_dtype, args.target, target_row) - c;
      if (hit >= 0 && hit < n) g[hit] -= each;
      return;
    }
    const char* values = static_cast<const char*>(args.target);
    if (c == 0) next = args.row_starts[target_row];
    for (; next < args.row_starts[target_row + 1]; ++next) {
      const int64_t hit = args.columns[next] - c;
      if (hit >= n) break;
      if (hit >= 0) g[hit] -= each * value_at<T>(args.target_dtype, values, next);
    }
  }

  void clear_grad() {
    memset(grad_at(args, row, 0, 0), 0,
           static_cast<size_t>(args.classes * size_of(args.grad.dtype)));
  }
};

template <class T>
bool rows_alone(const RowNllArgs& args, const Values<T>& values) {
  bool failed = false;
#pragma omp parallel num_threads(args.threads) if (args.threads > 1) reduction(|| : failed)
  {
    DenseRow<T> row(args);
    failed = row.tops.failed();
#pragma omp for schedule(static) nowait
    for (int64_t r = 0; r < args.rows; ++r) {
      if (row.tops.failed()) continue;
      const int64_t place = r % args.target_rows;
      if (!kept(args, place)) {
        row.row = r;
        values.set(args, r, 0);
        if (args.grad) row.clear_grad();
        continue;
      }
      const double weight = static_cast<double>(weight_of<T>(args, place));
      row.read(r);
      values.set(args, r, row.loss() * weight);
      if (args.grad) row.write_grad(weight * args.grad_factor);
    }
  }
  return !failed;
}

// Positions that lie side by side, their classes apart (logits [B, C, H, W]): a block of positions
// with all its classes stays in the cache while it is read three times.
template <class T>
struct Block {
  static constexpr int64_t kWidest = 512;
  T highest[kWidest], normaliser[kWidest], part[kWidest], share[kWidest], each[kWidest];
  T logits[kWidest], work[kWidest], picked[kWidest];
  int32_t hit[kWidest];
};

template <class T>
int64_t block_width(const RowNllArgs& args) {
  // 256 KB of logits: an eighth of the smallest second-level cache worth planning for is lost.
  const int64_t fits = 262144 / (args.classes * static_cast<int64_t>(sizeof(T)) + 1);
  const int64_t whole = fits / 16 * 16;
  return whole < 16 ? 16 : whole > Block<T>::kWidest ? Block<T>::kWidest : whole;
}

template <class T>
void side_by_side(const RowNllArgs& args, const Values<T>& values, const Positions& p,
                  Block<T>& b) {
  constexpr int64_t kPart = 32, kPrefetch = 4;
  const int64_t n = p.count, place = p.place(args);
  const auto load = [&](int64_t c) {
    return in_type(args.dtype, params_at<T>(args, p.row, c, p.at), b.logits, n);
  };
  for (int64_t i = 0; i < n; ++i) {
    b.highest[i] = -GammaConstants<T>::infinity;
    b.normaliser[i] = b.part[i] = T(0);
  }
  for (int64_t c = 0; c < args.classes; ++c) {
    // A class's positions are too few for the hardware to foresee where the next ones lie.
    const int64_t soon = c + kPrefetch < args.classes ? c + kPrefetch : c;
    fetch(params_at<T>(args, p.row, soon, p.at), n * size_of(args.dtype));
    const T* l = load(c);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) b.highest[i] = l[i] > b.highest[i] ? l[i] : b.highest[i];
  }
  // Before the logits are overwritten, where the gradient lies there.
  for (int64_t i = 0; i < n; ++i) {
    const int64_t c = index_of(args.target_dtype, args.target, place + i);
    const bool inside = c >= 0 && c < args.classes;
    b.hit[i] = inside ? static_cast<int32_t>(c) : -1;
    b.picked[i] = inside ? value_at<T>(args.dtype, params_at<T>(args, p.row, c, p.at), i) : T(kNan);
  }
  const bool kept_exps = args.grad && same_type(args.grad.dtype, b.work);
  // Sums of sums: the error does not grow with the number of classes.
  for (int64_t c = 0; c < args.classes; ++c) {
    const T* l = load(c);
    T* e = kept_exps ? reinterpret_cast<T*>(grad_at(args, p.row, c, p.at)) : b.work;
    const int64_t soon = c + kPrefetch < args.classes ? c + kPrefetch : c;
    if (kept_exps) fetch<true>(grad_at(args, p.row, soon, p.at), n * size_of(args.dtype));
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const T value = exp_or_zero(l[i] - b.highest[i]);
      e[i] = value;
      b.part[i] += value;
    }
    if (c % kPart != kPart - 1 && c + 1 != args.classes) continue;
    for (int64_t i = 0; i < n; ++i) {
      b.normaliser[i] += b.part[i];
      b.part[i] = T(0);
    }
  }
  for (int64_t i = 0; i < n; ++i) b.work[i] = log(b.normaliser[i]);
  for (int64_t i = 0; i < n; ++i) {
    const bool keep = kept(args, place + i);
    const T weight = weight_of<T>(args, place + i);
    const double loss = static_cast<double>(b.highest[i] - b.picked[i] + b.work[i]);
    values.set(args, p.row * args.inner + p.at + i, keep ? loss * static_cast<double>(weight) : 0);
    b.each[i] = keep ? weight * static_cast<T>(args.grad_factor) : T(0);
    b.share[i] = b.each[i] / b.normaliser[i];
  }
  if (!args.grad) return;
  for (int64_t c = 0; c < args.classes; ++c) {
    char* to = grad_at(args, p.row, c, p.at);
    T* g = kept_exps ? reinterpret_cast<T*>(to) : b.work;
    const int32_t own = static_cast<int32_t>(c);
    if (!kept_exps) {
      const T* l = load(c);
      for (int64_t i = 0; i < n; ++i) g[i] = exp_or_zero(l[i] - b.highest[i]);
    }
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) g[i] = g[i] * b.share[i] - (b.hit[i] == own ? b.each[i] : T(0));
    if (args.mask != nullptr) {
      for (int64_t i = 0; i < n; ++i) g[i] = args.mask[place + i] != 0 ? g[i] : T(0);
    }
    if (g == b.work) narrow(g, args.grad.dtype, to, n);
  }
}

template <class T>
bool run(const RowNllArgs& args) {
  Partials scratch(args.reduce == Reduce::kElem ? 0 : args.rows * args.inner);
  if (scratch.failed()) return false;
  const Values<T> values{static_cast<T*>(args.loss), scratch.get()};
  if (args.inner == 1) {
    if (!rows_alone(args, values)) return false;
  } else {
    const Runs runs(args, block_width<T>(args));
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
    {
      Block<T> block;
#pragma omp for schedule(static) nowait
      for (int64_t index = 0; index < runs.count; ++index)
        side_by_side(args, values, runs.at(args, index), block);
    }
  }
  reduce_values<T>(args, scratch.get());
  return true;
}

}  // namespace

bool softmax_nll(const RowNllArgs& args) {
  return args.wide ? run<double>(args) : run<float>(args);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
