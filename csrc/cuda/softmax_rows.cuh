// Log-softmax, loss and gradient of classes that lie side by side. A row is one for some lanes of a
// warp or for a block; what is read of up to some 8000 classes stays in registers. Longer rows are
// read twice, and few of them are shared out between blocks.
#pragma once

#include "cuda/row_nll.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

constexpr int kDouble = 8;

// How rows are cut: into `pieces` of `each` vectors, `lanes` threads to a piece.
struct ClassCut {
  int64_t vectors, each, pieces = 1;
  int lanes = kThreads;
  bool held;

  // Where rows begin apart from vectors, their first one is cut short. `holds`: the vectors that a
  // thread has registers for.
  ClassCut(const RowNllArgs& args, int vector, int holds) {
    const bool apart = reinterpret_cast<uintptr_t>(args.params) % 16 != 0 ||
                       (args.rows > 1 && args.row_stride % vector != 0);
    vectors = args.classes > 0 ? divide_up(args.classes + (apart ? vector - 1 : 0), vector) : 0;
    each = vectors;
    if (vectors <= kWarp * holds)
      lanes = static_cast<int>(vectors >= kWarp ? kWarp : power_of_two(vectors));
    held = vectors <= int64_t{lanes} * holds;
    if (held) return;
    // Some 1024 blocks, where there are that many times 4 vectors for each thread of one.
    const int64_t wanted = divide_up(1024, args.rows > 0 ? args.rows : 1);
    const int64_t most = vectors / (kThreads * 4);
    pieces = wanted < most ? wanted : most;
    pieces = pieces > kThreads ? kThreads : pieces < 1 ? 1 : pieces;
    each = divide_up(vectors, pieces);
    pieces = divide_up(vectors, each);
  }
};

// Logits that a thread has registers for: 32 and a CSR row's sums spill.
template <class T, RowForm kForm>
constexpr int kHeldLogits = sizeof(T) == 8                         ? 16
                            : kForm == RowForm::kMultinomialSparse ? 24
                                                                   : 32;

template <class T, int kStored, int V, RowForm kForm, bool kHolds>
struct SoftmaxRows {
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
  RowNllArgs args;
  ClassCut cut;
  Target grad;
  Total loss;
  // What each piece of a row found, to be stored or (`merging`) read.
  double* parts = nullptr;
  bool merging = false;
  // Logits of a CSR matrix's entries, where the gradient overwrites them.
  T* entries = nullptr;

  SoftmaxRows(const RowNllArgs& a, const ClassCut& c)
      : args(a), cut(c), grad{a.grad, a.grad.data != nullptr} {
    const bool blocks = a.reduce == Reduce::kSum;
    work = {a.rows * c.pieces, c.lanes, blocks ? kThreads : c.lanes};
    loss = position_total(a, work, c.pieces);
  }

  VAEFAST_MEMBER bool sums_up() const { return parts == nullptr || merging; }

  VAEFAST_MEMBER void finish(int64_t index, const double* sums) const {
    if (args.reduce == Reduce::kElem && cut.pieces > 1) {
      const int64_t row = quotient(index, cut.pieces);
      if (index == row * cut.pieces) loss.add(row, sums[0]);
      return;
    }
    loss.add(index, sums[0]);
  }

  struct Row {
    int64_t row, own, piece;
    // Of the piece: its vectors, and its classes; `shift` is what the first vector lacks.
    int64_t vector, vectors, first, end;
    int shift;
    const char *logits, *counts;
    bool counts_wide, grad_wide;
  };

  VAEFAST_MEMBER Row enter(int64_t unit) const {
    Row r;
    r.row = cut.pieces > 1 ? quotient(unit, cut.pieces) : unit;
    r.piece = unit - r.row * cut.pieces;
    r.own = remainder(r.row, args.target_rows);
    r.logits = static_cast<const char*>(args.params) + r.row * args.row_stride * kStored;
    r.shift = static_cast<int>(reinterpret_cast<uintptr_t>(r.logits) % 16) / kStored;
    r.vector = r.piece * cut.each;
    r.vectors = r.vector + cut.each < cut.vectors ? r.vector + cut.each : cut.vectors;
    r.first = r.piece == 0 ? 0 : r.vector * V - r.shift;
    r.end = r.vectors * V - r.shift < args.classes ? r.vectors * V - r.shift : args.classes;
    r.counts = nullptr;
    r.counts_wide = false;
    if constexpr (kDense) {
      const int64_t size = size_of(args.target_dtype);
      r.counts = static_cast<const char*>(args.target) + r.own * args.classes * size;
      const uintptr_t unit_bytes = static_cast<uintptr_t>(V * size < 16 ? V * size : 16);
      r.counts_wide =
          (reinterpret_cast<uintptr_t>(r.counts) - static_cast<uintptr_t>(r.shift * size)) %
                  unit_bytes ==
              0 &&
          size <= static_cast<int64_t>(sizeof(T));
    }
    const uintptr_t to =
        reinterpret_cast<uintptr_t>(args.grad.data) + r.row * args.classes * kStored;
    r.grad_wide = to % 16 == static_cast<uintptr_t>(r.shift * kStored);
    return r;
  }

  // Which of a vector's elements there are: [from, to).
  struct Range {
    int from, to;
    VAEFAST_MEMBER bool whole() const { return from == 0 && to == V; }
  };

  VAEFAST_MEMBER Range range(int64_t col) const {
    const int64_t left = args.classes - col;
    return {col < 0 ? static_cast<int>(-col) : 0, left < V ? static_cast<int>(left) : V};
  }

  VAEFAST_MEMBER void load(const Row& r, int64_t vector, uint32_t* words) const {
    const int64_t col = vector * V - r.shift;
    const Range in = range(col);
    const char* at = r.logits + col * kStored;
    if (in.whole()) return load_words<16>(at, words);
    load_each<kStored, V>(at, in.to, words, in.from);
  }

  // -inf where there is no class.
  VAEFAST_MEMBER void decode_logits(const Row& r, int64_t vector, const uint32_t* words,
                                    T* out) const {
    if constexpr (kStored == kDouble) {
      decode_as<DType::kF64, T, V>(words, out);
    } else if constexpr (kStored == kFloat) {
      decode_as<DType::kF32, T, V>(words, out);
    } else if (args.dtype == DType::kBF16) {
      decode_as<DType::kBF16, T, V>(words, out);
    } else {
      decode_as<DType::kF16, T, V>(words, out);
    }
    const Range in = range(vector * V - r.shift);
    if (in.whole()) return;
#pragma unroll
    for (int l = 0; l < V; ++l)
      if (l < in.from || l >= in.to) out[l] = -GammaConstants<T>::infinity;
  }

  VAEFAST_MEMBER void counts_at(const Row& r, int64_t vector, T* x) const {
    const int64_t col = vector * V - r.shift, size = size_of(args.target_dtype);
    const Range in = range(col);
    const char* at = r.counts + col * size;
    if (in.whole() && r.counts_wide) {
      Source source;
      source.view.dtype = args.target_dtype;
      source.wide = true;
      Raw<T, V> raw;
      fetch<kAny, false>(source, at, 0, V, raw);
      decode<kAny, false>(source, raw, x);
      return;
    }
#pragma unroll
    for (int l = 0; l < V; ++l)
      x[l] = l >= in.from && l < in.to ? load_one<T>(args.target_dtype, at + l * size) : T(0);
  }

  VAEFAST_MEMBER T logit_at(const Row& r, int64_t c) const {
    return load_one<T>(args.dtype, r.logits + c * kStored);
  }

  VAEFAST_MEMBER int64_t class_of(const Row& r) const {
    switch (args.target_dtype) {
      case DType::kI64:
        return static_cast<const int64_t*>(args.target)[r.own];
      case DType::kI32:
        return static_cast<const int32_t*>(args.target)[r.own];
      default:
        return static_cast<const uint8_t*>(args.target)[r.own];
    }
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
    const int64_t c = class_of(r);
    // No class: no logit is read, and the loss says so.
    if (c < 0 || c >= args.classes) {
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
    if constexpr (kClass) own_class = class_of(r);
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
          load(r, vector, words);
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
