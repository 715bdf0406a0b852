// Log-softmax, loss and gradient of positions that lie side by side and have up to 256 classes: a
// block's warps share the classes of 32 positions out, and keep them in registers.
#include "cuda/row_nll.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// kSize: bytes of a stored logit.
template <class T, int kSize>
struct SoftmaxTiles {
  static constexpr int kSums = 1, kBlocksPerSm = sizeof(T) == 8 ? 1 : 2;
  static constexpr bool kPatches = false, kAcrossWarps = true;
  // Classes that a thread keeps of a position.
  static constexpr int kClasses = sizeof(T) == 8 ? 16 : 32;
  using Sum = double;
  // Of e^(logit - top), of the target's logit.
  using Found = Merge<T, T, 1, 2>;
  struct Held {
    T e[kClasses], top;
  };

  Work work;
  RowNllArgs args;
  int64_t per_row;
  Total loss;
  bool elements;

  explicit SoftmaxTiles(const RowNllArgs& a)
      : args(a), per_row(divide_up(a.inner, kWarp)), elements(a.reduce == Reduce::kElem) {
    work = {a.rows * per_row, kThreads, kThreads};
    const int64_t samples = a.segments > 0 ? a.rows / a.segments : 0;
    const int64_t terms = a.segments * per_row;
    if (a.reduce == Reduce::kSample) {
      loss = {a.loss, nullptr, samples, terms, terms, 1, a.factor, a.wide};
    } else if (!elements) {
      loss = {a.loss, nullptr, 1, work.units, 0, 1, a.factor, a.wide};
    }
  }

  VAEFAST_MEMBER bool sums_up() const { return static_cast<bool>(loss); }
  VAEFAST_MEMBER void finish(int64_t index, const double* sums) const { loss.add(index, sums[0]); }

  // A thread's position; its classes are every kWarps-th from `first` on.
  struct Position {
    int64_t row, at, place;
    int first;
    bool here;
  };

  VAEFAST_MEMBER Position enter(int64_t unit, int lane) const {
    Position p;
    p.row = quotient(unit, per_row);
    p.at = (unit - p.row * per_row) * kWarp + lane % kWarp;
    p.place = remainder(p.row, args.target_rows) * args.inner + p.at;
    p.first = lane / kWarp;
    p.here = p.at < args.inner;
    return p;
  }

  VAEFAST_MEMBER T decoded(uint32_t low, uint32_t high) const {
    if constexpr (kSize == 8) {
      return static_cast<T>(as_double(low | static_cast<uint64_t>(high) << 32));
    } else if constexpr (kSize == 4) {
      return static_cast<T>(as_float(low));
    } else if (args.dtype == DType::kBF16) {
      return static_cast<T>(from_bf16(static_cast<uint16_t>(low)));
    } else {
      return static_cast<T>(half_to_float(static_cast<uint16_t>(low)));
    }
  }

  VAEFAST_MEMBER void read(int64_t unit, int lane, Held& held, Found& found) const {
    const Position p = enter(unit, lane);
    if (!p.here || !kept(args, p.place)) return;
    const int classes = static_cast<int>(args.classes);
    const int64_t step = kWarps * args.class_stride * kSize;
    const char* at = params_at<T>(args, p.row, p.first, p.at);
    uint32_t low[kClasses], high[kSize == 8 ? kClasses : 1];
#pragma unroll
    for (int i = 0; i < kClasses; ++i, at += step) {
      if (p.first + i * kWarps >= classes) continue;
      if constexpr (kSize == 2) {
        low[i] = *reinterpret_cast<const uint16_t*>(at);
      } else {
        low[i] = *reinterpret_cast<const uint32_t*>(at);
      }
      if constexpr (kSize == 8) high[i] = *reinterpret_cast<const uint32_t*>(at + 4);
    }
    const int own = static_cast<int>(class_at(args, p.place));
    if (own < 0 && p.first == 0) found.sums[1] = T(kNan);
    T top = found.tops[0];
#pragma unroll
    for (int i = 0; i < kClasses; ++i) {
      const int c = p.first + i * kWarps;
      held.e[i] =
          c < classes ? decoded(low[i], high[kSize == 8 ? i : 0]) : -GammaConstants<T>::infinity;
      if (c < classes && c == own) found.sums[1] = held.e[i];
      top = held.e[i] > top ? held.e[i] : top;
    }
    found.tops[0] = held.top = top;
    const T under = level_under(top);
    // Two sums, one behind the other.
    T even = T(0), odd = T(0);
#pragma unroll
    for (int i = 0; i < kClasses; i += 2) {
      if (p.first + i * kWarps >= classes) continue;
      held.e[i] = exp_or_zero(held.e[i] - under);
      held.e[i + 1] = exp_or_zero(held.e[i + 1] - under);
      even += held.e[i];
      odd += held.e[i + 1];
    }
    found.sums[0] = even + odd;
  }

  VAEFAST_MEMBER void write(int64_t unit, int lane, const Held& held, const Found& found,
                            double* sums) const {
    const Position p = enter(unit, lane);
    if (!p.here) return;
    const bool keep = kept(args, p.place);
    const T weight = weight_of<T>(args, p.place);
    if (p.first == 0) {
      const T value = ((found.tops[0] - found.sums[1]) + log(found.sums[0])) * weight;
      if (elements) {
        static_cast<T*>(args.loss)[p.row * args.inner + p.at] =
            keep ? value * static_cast<T>(args.factor) : T(0);
      } else if (keep) {
        sums[0] = static_cast<double>(value);
      }
    }
    if (args.grad.data == nullptr) return;
    const int classes = static_cast<int>(args.classes);
    const int own = static_cast<int>(class_at(args, p.place));
    const T each = weight * static_cast<T>(args.grad_factor);
    const T share = each / found.sums[0] * lowered(held.top, found.tops[0]);
    const int64_t step = kWarps * args.inner * kSize;
    char* to = static_cast<char*>(args.grad.data) +
               ((p.row * args.classes + p.first) * args.inner + p.at) * kSize;
#pragma unroll
    for (int i = 0; i < kClasses; ++i, to += step) {
      const int c = p.first + i * kWarps;
      if (c >= classes) continue;
      const T g = held.e[i] * share - (c == own ? each : T(0));
      // One place after the other: thirty-two addresses at once spill.
      store_one(args.grad.dtype, to, keep ? g : T(0));
    }
  }
};

template <class T, int kSize>
int64_t run(const RowNllArgs& args, const cuda::Place* place) {
  SoftmaxTiles<T, kSize> op(args);
  Room room = place != nullptr ? Room(*place) : Room();
  room.take(op.loss);
  if (place != nullptr) {
    launch(op, *place);
    add_up(&op.loss, nullptr, *place);
  }
  return room.used();
}

}  // namespace

int64_t softmax_tiles(const RowNllArgs& args, const cuda::Place* place) {
  if (args.wide) return run<double, 8>(args, place);
  return args.dtype == DType::kF32 ? run<float, 4>(args, place) : run<float, 2>(args, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
