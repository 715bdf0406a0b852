// Rows of classes that lie side by side: how they are cut, and vectors of their logits and counts.
#pragma once

#include "cuda/row_nll.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

constexpr int kDouble = 8;

// No GPU's block has more shared memory.
constexpr int64_t kMostShared = 227 << 10;

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
    // Some 1024 blocks, where there are that many times 4 vectors for each thread of one. Of rows
    // that shared memory may hold, 256 are enough: in pieces they would be read twice.
    const bool whole = args.rows >= 256 && vectors * 16 <= kMostShared;
    const int64_t wanted = whole ? 1 : divide_up(1024, args.rows > 0 ? args.rows : 1);
    const int64_t most = vectors / (kThreads * 4);
    pieces = wanted < most ? wanted : most;
    pieces = pieces > kThreads ? kThreads : pieces < 1 ? 1 : pieces;
    each = divide_up(vectors, pieces);
    pieces = divide_up(vectors, each);
  }
};

// kStored: bytes of a logit, V of which are 16.
template <class T, int kStored, int V>
struct ClassRows {
  RowNllArgs args;
  ClassCut cut;

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
    if (args.form == RowForm::kMultinomial) {
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
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
