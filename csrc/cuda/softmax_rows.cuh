// Log-softmax, loss and gradient of classes that lie side by side. A row is one for some lanes of a
// warp or for a block; what is read of up to some 8000 classes stays in registers, of more in
// shared memory, each thread's vectors for itself. Rows that fit in neither are read twice, and few
// of them are shared out between blocks.
#pragma once

#include "cuda/class_rows.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

// Logits that a thread has registers for: 32 and a CSR row's sums spill.
template <class T, RowForm kForm>
constexpr int kHeldLogits = sizeof(T) == 8                         ? 16
                            : kForm == RowForm::kMultinomialSparse ? 24
                                                                   : 32;

template <class T, int kStored, int V, RowForm kForm, bool kHolds>
struct SoftmaxRows : ClassRows<T, kStored, V> {
  using Rows = ClassRows<T, kStored, V>;
  using Rows::args, Rows::cut, Rows::counts_at, Rows::decode_logits, Rows::enter, Rows::load,
      Rows::logit_at, Rows::range;
  using typename Rows::Range;
  using typename Rows::Row;
  static constexpr bool kSparse = kForm == RowForm::kMultinomialSparse;
  static constexpr bool kDense = kForm == RowForm::kMultinomial;
  static constexpr bool kClass = kForm == RowForm::kCategorical;
  static constexpr int kSums = 1, kBlocksPerSm = sizeof(T) == 8 ? 1 : 2;
  static constexpr bool kPatches = kSparse, kAcrossWarps = false;
  // Vectors whose loads are under way at once.
  static constexpr int kGroup = (kHolds ? kHeldLogits<T, kForm> : 16) / V;
  using Sum = double;
  // Of e^(logit - top), of the counts' logits; of counts, of log(count!).
  using Found = Merge<T, double, 1, kClass ? 2 : 4>;
  // e^(logit - top), the lane's own.
  struct Held {
    T e[kHolds ? kGroup * V : 1], top;
  };

  Work work;
  Target grad;
  Total loss;
  // What each piece of a row found, to be stored or (`merging`) read.
  double* parts = nullptr;
  bool merging = false;
  // Logits of a CSR matrix's entries, where the gradient overwrites them.
  T* entries = nullptr;
  // Bytes of shared memory that hold a row as it is stored; 0: it is read twice.
  int64_t staged = 0;

  SoftmaxRows(const RowNllArgs& a, const ClassCut& c)
      : Rows{a, c}, grad{a.grad, a.grad.data != nullptr} {
    const bool blocks = a.reduce == Reduce::kSum;
    work = {a.rows * c.pieces, c.lanes, blocks ? kThreads : c.lanes};
    loss = position_total(a, work, c.pieces);
  }

  VAEFAST_MEMBER bool sums_up() const { return parts == nullptr || merging; }

  int64_t dynamic_shared() const { return staged; }

  VAEFAST_MEMBER void finish(int64_t index, const double* sums) const {
    if (args.reduce == Reduce::kElem && cut.pieces > 1) {
      const int64_t row = quotient(index, cut.pieces);
      if (index == row * cut.pieces) loss.add(row, sums[0]);
      return;
    }
    loss.add(index, sums[0]);
  }

  VAEFAST_MEMBER void read(int64_t unit, int lane, Held& held, Found& found) const {
    const Row r = enter(unit);
    if (merging) {
      if (lane >= cut.pieces) return;
      const double* part = parts + (r.row * cut.pieces + lane) * Found::kNumbers;
      found.tops[0] = static_cast<T>(part[0]);
#pragma unroll
      for (int i = 0; i < Found::kSums; ++i) found.sums[i] = part[1 + i];
      return;
    }
    held.top = found.tops[0];
    if (!kept(args, r.own)) return;
    // Before the logits are overwritten, where the gradient lies there.
    if constexpr (kClass) {
      if (lane == 0) read_class(r, found);
    } else if constexpr (kSparse) {
      read_entries(r, lane, found);
    }
    bool more = false;
    for (int64_t vector = r.vector + lane; vector < r.vectors; vector += kGroup * cut.lanes) {
      const T top = read_group(r, vector, held.e, found, more);
      if constexpr (kHolds) {
        held.top = top;
        break;
      }
    }
    if constexpr (kDense) {
      // Most counts are 0 or 1, whose logarithm is 0. Not so: a NaN.
      if (!more || args.numbers[0] == 0) return;
#pragma unroll 1
      for (int64_t vector = r.vector + lane; vector < r.vectors; vector += cut.lanes) {
        const int64_t col = vector * V - r.shift, size = size_of(args.target_dtype);
        const Range in = range(col);
#pragma unroll 1
        for (int l = in.from; l < in.to; ++l) {
          const double x = load_one<double>(args.target_dtype, r.counts + (col + l) * size);
          if (x != 0 && x != 1) found.sums[3] += lgamma(x + 1);
        }
      }
    }
  }

  // kGroup vectors of a lane: their exponentials and the top that these are relative to.
  VAEFAST_MEMBER T read_group(const Row& r, int64_t vector, T* held, Found& found,
                              bool& more) const {
    uint32_t words[kGroup][4];
    T local[kHolds ? 1 : kGroup * V];
    T* const e = kHolds ? held : local;
#pragma unroll
    for (int i = 0; i < kGroup; ++i)
      if (vector + i * cut.lanes < r.vectors) load(r, vector + i * cut.lanes, words[i]);
    if constexpr (!kHolds) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (staged != 0 && vector + i * cut.lanes < r.vectors)
          store_words<16>(shared_bytes() + 16 * (vector + i * cut.lanes), words[i]);
    }
    T top = found.tops[0];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      T* v = e + i * V;
      if (vector + i * cut.lanes < r.vectors) {
        decode_logits(r, vector + i * cut.lanes, words[i], v);
      } else {
#pragma unroll
        for (int l = 0; l < V; ++l) v[l] = -GammaConstants<T>::infinity;
      }
#pragma unroll
      for (int l = 0; l < V; ++l) top = v[l] > top ? v[l] : top;
    }
    if constexpr (kDense) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (vector + i * cut.lanes >= r.vectors) continue;
        T x[V];
        counts_at(r, vector + i * cut.lanes, x);
#pragma unroll
        for (int l = 0; l < V; ++l) {
          more = more || (x[l] != T(0) && x[l] != T(1));
          const double count = static_cast<double>(x[l]);
          const double term = madd(count, static_cast<double>(e[i * V + l]), found.sums[1]);
          found.sums[1] = x[l] == T(0) ? found.sums[1] : term;
          found.sums[2] += count;
        }
      }
    }
    if (top > found.tops[0]) {
      found.sums[0] *= static_cast<double>(exp_or_zero(found.tops[0] - top));
      found.tops[0] = top;
    }
    const T under = level_under(top);
    // The terms of a row of large counts cancel.
    using Wide = std::conditional_t<kClass, T, double>;
    Wide sum = Wide(0);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (vector + i * cut.lanes >= r.vectors) continue;
#pragma unroll
      for (int l = 0; l < V; ++l) e[i * V + l] = exp_or_zero(e[i * V + l] - under);
      Wide wide[V];
#pragma unroll
      for (int l = 0; l < V; ++l) wide[l] = static_cast<Wide>(e[i * V + l]);
      sum += sum_of<Wide, V>(wide, V);
    }
    found.sums[0] += static_cast<double>(sum);
    return top;
  }

  VAEFAST_MEMBER void read_class(const Row& r, Found& found) const {
    const int64_t c = class_at(args, r.own);
    // No class: no logit is read, and the loss says so.
    if (c < 0) {
      found.sums[1] = kNan;
    } else if (c >= r.first && c < r.end) {
      found.sums[1] = static_cast<double>(logit_at(r, c));
    }
  }

  VAEFAST_MEMBER void read_entries(const Row& r, int lane, Found& found) const {
    const char* values = static_cast<const char*>(args.target);
    const int64_t size = size_of(args.target_dtype), last = args.row_starts[r.own + 1];
    for (int64_t k = args.row_starts[r.own] + lane; k < last; k += cut.lanes) {
      const int64_t c = args.columns[k];
      const double x = load_one<double>(args.target_dtype, values + k * size);
      if (r.piece == 0) {
        found.sums[2] += x;
        if (args.numbers[0] != 0 && x != 0 && x != 1) found.sums[3] += lgamma(x + 1);
        if (x != 0 && (c < 0 || c >= args.classes)) found.sums[1] = kNan;
      }
      if (c < r.first || c >= r.end) continue;
      const T logit = logit_at(r, c);
      if (entries != nullptr) entries[quotient(r.row, args.target_rows) * args.stored + k] = logit;
      if (x != 0) found.sums[1] += x * static_cast<double>(logit);
    }
  }

  VAEFAST_MEMBER double loss_of(const Found& found) const {
    if constexpr (kClass) {
      const T picked = static_cast<T>(found.sums[1]);
      return static_cast<double>((found.tops[0] - picked) + log(static_cast<T>(found.sums[0])));
    } else {
      const double total = found.sums[2];
      const double log_z = static_cast<double>(found.tops[0]) + log(found.sums[0]);
      const double coefficient = args.numbers[0] != 0 ? lgamma(total + 1) - found.sums[3] : 0;
      return total * log_z - found.sums[1] - coefficient;
    }
  }

  // The gradient is share e^(logit - top) - each count.
  struct Slope {
    T each, share;
  };

  VAEFAST_MEMBER Slope slope(const Row& r, const Found& found) const {
    const double each = static_cast<double>(weight_of<T>(args, r.own)) * args.grad_factor;
    const double total = kClass ? 1.0 : found.sums[kClass ? 0 : 2];
    return {static_cast<T>(each), static_cast<T>(each * total / found.sums[0])};
  }

  VAEFAST_MEMBER void write(int64_t unit, int lane, const Held& held, const Found& found,
                            double* sums) const {
    const Row r = enter(unit);
    if (!sums_up()) {
      if (lane != 0) return;
      double* part = parts + unit * Found::kNumbers;
      part[0] = static_cast<double>(found.tops[0]);
#pragma unroll
      for (int i = 0; i < Found::kSums; ++i) part[1 + i] = found.sums[i];
      return;
    }
    const bool keep = kept(args, r.own);
    if (lane == 0 && r.piece == 0 && keep)
      sums[0] = loss_of(found) * static_cast<double>(weight_of<T>(args, r.own));
    if (args.grad.data == nullptr) return;
    Slope slope = this->slope(r, found);
    int64_t own_class = -1;
    if constexpr (kClass) own_class = class_at(args, r.own);
    const T under = level_under(found.tops[0]);
    if constexpr (kHolds) slope.share *= lowered(held.top, found.tops[0]);
#pragma unroll
    for (int i = 0; i < (kHolds ? kGroup : 1); ++i) {
      for (int64_t vector = r.vector + lane + i * cut.lanes; vector < r.vectors;
           vector += cut.lanes) {
        T g[V];
        if constexpr (kHolds) {
#pragma unroll
          for (int l = 0; l < V; ++l) g[l] = held.e[i * V + l];
        } else {
          uint32_t words[4];
          if (staged != 0) {
            load_shared(shared_bytes() + 16 * vector, words);
          } else {
            load(r, vector, words);
          }
          decode_logits(r, vector, words, g);
#pragma unroll
          for (int l = 0; l < V; ++l) g[l] = exp_or_zero(g[l] - under);
        }
        write_vector(r, vector, slope, own_class, keep, g);
        if constexpr (kHolds) break;
      }
    }
  }

  VAEFAST_MEMBER void write_vector(const Row& r, int64_t vector, const Slope& slope,
                                   int64_t own_class, bool keep, T* g) const {
    const int64_t col = vector * V - r.shift;
    T x[V];
    if constexpr (kDense) counts_at(r, vector, x);
#pragma unroll
    for (int l = 0; l < V; ++l) {
      g[l] *= slope.share;
      if constexpr (kDense) g[l] -= slope.each * x[l];
      if constexpr (kClass) g[l] -= col + l == own_class ? slope.each : T(0);
      g[l] = keep ? g[l] : T(0);
    }
    const Range in = range(col);
    const int64_t index = r.row * args.classes + col;
    if (in.whole() && r.grad_wide) return put<kStored, T, V>(grad, index, V, g);
    char* to = static_cast<char*>(args.grad.data) + index * kStored;
#pragma unroll
    for (int l = 0; l < V; ++l)
      if (l >= in.from && l < in.to) store_one(args.grad.dtype, to + l * kStored, g[l]);
  }

  // The entries of a CSR matrix, over what `write` made of their classes.
  VAEFAST_MEMBER void patch(int64_t unit, int lane, const Found& found) const {
    const Row r = enter(unit);
    if (args.grad.data == nullptr || !sums_up() || !kept(args, r.own)) return;
    const Slope slope = this->slope(r, found);
    const T under = level_under(found.tops[0]);
    const char* values = static_cast<const char*>(args.target);
    const int64_t size = size_of(args.target_dtype), last = args.row_starts[r.own + 1];
    char* to = static_cast<char*>(args.grad.data) + r.row * args.classes * kStored;
    for (int64_t k = args.row_starts[r.own] + lane; k < last; k += cut.lanes) {
      const int64_t c = args.columns[k];
      if (c < r.first || c >= r.end) continue;
      const T x = load_one<T>(args.target_dtype, values + k * size);
      const T logit = entries != nullptr
                          ? entries[quotient(r.row, args.target_rows) * args.stored + k]
                          : logit_at(r, c);
      const T e = exp_or_zero(logit - under);
      store_one(args.grad.dtype, to + c * kStored, e * slope.share - slope.each * x);
    }
  }
};

template <class T, int kStored, int V, RowForm kForm, bool kHolds>
int64_t run_rows(const RowNllArgs& args, const ClassCut& cut, const cuda::Place* place) {
  using Op = SoftmaxRows<T, kStored, V, kForm, kHolds>;
  Op op(args, cut);
  Room room = place != nullptr ? Room(*place) : Room();
  room.take(op.loss);
  if (cut.pieces > 1) op.parts = room.take<double>(op.work.units * Op::Found::kNumbers);
  const int64_t copies = args.target_rows > 0 ? args.rows / args.target_rows : 0;
  if (Op::kSparse && args.grad && args.grad.data == args.params)
    op.entries = room.take<T>(copies * args.stored);
  if (place == nullptr) return room.used();
  if (!kHolds && args.grad && cut.pieces == 1 &&
      cut.vectors * 16 <= most_dynamic_shared<Op>(*place))
    op.staged = cut.vectors * 16;
  if (cut.pieces > 1) {
    launch(op, *place);
    op.merging = true;
  }
  launch(op, *place);
  add_up(&op.loss, nullptr, *place);
  return room.used();
}

template <class T, int kStored, int V, RowForm kForm>
int64_t run_form(const RowNllArgs& args, const cuda::Place* place) {
  const ClassCut cut(args, V, kHeldLogits<T, kForm> / V);
  return cut.held ? run_rows<T, kStored, V, kForm, true>(args, cut, place)
                  : run_rows<T, kStored, V, kForm, false>(args, cut, place);
}

template <class T, int kStored, int V>
int64_t run_stored(const RowNllArgs& args, const cuda::Place* place) {
  switch (args.form) {
    case RowForm::kCategorical:
      return run_form<T, kStored, V, RowForm::kCategorical>(args, place);
    case RowForm::kMultinomial:
      return run_form<T, kStored, V, RowForm::kMultinomial>(args, place);
    default:
      return run_form<T, kStored, V, RowForm::kMultinomialSparse>(args, place);
  }
}

int64_t softmax_rows_double(const RowNllArgs& args, const cuda::Place* place);
int64_t softmax_rows_float(const RowNllArgs& args, const cuda::Place* place);
int64_t softmax_rows_half(const RowNllArgs& args, const cuda::Place* place);

}  // namespace VAEFAST_ISA
}  // namespace vaefast
