// Log-softmax, loss and gradient of positions that lie side by side, their classes apart (logits
// [B, C, H, W]): a thread has a vector of positions, or one, and goes through their classes twice.
#include "cuda/row_nll.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// kStored: the storage of a vector of positions; kAny: of one position, of any type.
template <class T, int kStored, int V>
struct SoftmaxColumns {
  static constexpr int kSums = 1, kBlocksPerSm = sizeof(T) == 8 ? 1 : 2;
  // Classes whose loads are under way at once, and whose exponentials are one partial sum.
  static constexpr int kGroup = V == 8 ? 2 : 4, kPart = 32;
  using Sum = double;
  Work work;
  RowCut cut;
  RowNllArgs args;
  Target grad, elements;
  Total loss;

  explicit SoftmaxColumns(const RowNllArgs& a)
      : cut(a.rows, a.inner, V), args(a), grad{a.grad, kStored != kAny} {
    work = cut.work(a.reduce == Reduce::kSum);
    const Shape shape{a.rows, a.inner, a.segments};
    if (a.reduce == Reduce::kElem) {
      elements.output = {a.loss, a.wide ? DType::kF64 : DType::kF32};
    } else if (a.reduce == Reduce::kSample) {
      loss = per_sample(a.loss, shape, cut, a.factor, a.wide);
    } else {
      loss = {a.loss, nullptr, 1, work.sums(), 0, 1, a.factor, a.wide};
    }
  }

  VAEFAST_MEMBER bool sums_up() const { return static_cast<bool>(loss); }
  VAEFAST_MEMBER void finish(int64_t index, const double* sums) const { loss.add(index, sums[0]); }

  VAEFAST_MEMBER void run(int64_t unit, int lane, double* sums) const {
    const Walk walk = cut.template walk<V>(unit, lane);
    const int64_t own_row = remainder(walk.row, args.target_rows);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int64_t at = walk.first + col;
      const int n = walk.count - col < V ? walk.count - col : V;
      columns(walk.row, at, own_row * args.inner + at, n, sums);
    }
  }

  // Classes [c, c + kGroup) of n positions; -inf where there is none.
  VAEFAST_MEMBER void load(int64_t row, int64_t at, int c, int n, T (*logits)[V]) const {
    const int64_t step = args.class_stride * size_of(args.dtype);
    const char* from = params_at<T>(args, row, c, at);
    Raw<T, V> raw[kGroup];
    Source source;
    source.view.dtype = args.dtype;
    source.wide = true;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (c + i >= args.classes) continue;
      if constexpr (V == 1) {
        put_bits(raw[i].words, 0, load_one<T>(args.dtype, from + i * step));
      } else {
        fetch<kStored, false>(source, from + i * step, 0, n, raw[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const bool here = c + i < args.classes;
      if constexpr (V == 1) {
        get_bits(raw[i].words, 0, logits[i][0]);
      } else {
        decode<kStored, false>(source, raw[i], logits[i]);
      }
#pragma unroll
      for (int l = 0; l < V; ++l) logits[i][l] = here ? logits[i][l] : -GammaConstants<T>::infinity;
    }
  }

  VAEFAST_MEMBER void columns(int64_t row, int64_t at, int64_t place, int n, double* sums) const {
    T highest[V], normaliser[V], part[V], picked[V];
    int own[V];
#pragma unroll
    for (int l = 0; l < V; ++l) {
      own[l] = l < n ? static_cast<int>(class_at(args, place + l)) : -1;
      highest[l] = -GammaConstants<T>::infinity;
      normaliser[l] = part[l] = T(0);
      picked[l] = T(kNan);
    }
    const int classes = static_cast<int>(args.classes);
#pragma unroll 1
    for (int c = 0; c < classes; c += kGroup) {
      T logits[kGroup][V];
      load(row, at, c, n, logits);
#pragma unroll
      for (int l = 0; l < V; ++l) {
        T top = highest[l];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          top = logits[i][l] > top ? logits[i][l] : top;
          picked[l] = c + i == own[l] ? logits[i][l] : picked[l];
        }
        const T by = lowered(highest[l], top), under = level_under(top);
        highest[l] = top;
        T sum = T(0);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) sum += exp_or_zero(logits[i][l] - under);
        part[l] = part[l] * by + sum;
        normaliser[l] *= by;
      }
      if ((c / kGroup) % kPart != kPart - 1 && c + kGroup < classes) continue;
#pragma unroll
      for (int l = 0; l < V; ++l) {
        normaliser[l] += part[l];
        part[l] = T(0);
      }
    }
    // What the gradient is multiplied by, in the place of the parts.
    T* const share = part;
    T each[V] = {};
    unsigned keep = 0;
#pragma unroll
    for (int l = 0; l < V; ++l) {
      if (l >= n) continue;
      const bool keeps = kept(args, place + l);
      const T weight = weight_of<T>(args, place + l);
      const T value = ((highest[l] - picked[l]) + log(normaliser[l])) * weight;
      keep |= keeps ? 1u << l : 0u;
      each[l] = weight * static_cast<T>(args.grad_factor);
      share[l] = each[l] / normaliser[l];
      if (elements) {
        store_one(elements.output.dtype,
                  static_cast<char*>(elements.output.data) +
                      (row * args.inner + at + l) * static_cast<int64_t>(sizeof(T)),
                  keeps ? value * static_cast<T>(args.factor) : T(0));
      } else if (keeps) {
        sums[0] += static_cast<double>(value);
      }
      highest[l] = level_under(highest[l]);
    }
    if (args.grad.data == nullptr) return;
#pragma unroll 1
    for (int c = 0; c < classes; c += kGroup) {
      T g[kGroup][V];
      load(row, at, c, n, g);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (c + i >= classes) continue;
#pragma unroll
        for (int l = 0; l < V; ++l) {
          const T e = exp_or_zero(g[i][l] - highest[l]);
          const T slope = e * share[l] - (c + i == own[l] ? each[l] : T(0));
          g[i][l] = keep >> l & 1u ? slope : T(0);
        }
        store((row * args.classes + c + i) * args.inner + at, n, g[i]);
      }
    }
  }

  VAEFAST_MEMBER void store(int64_t index, int n, const T* values) const {
    if constexpr (V == 1) {
      const DType dtype = args.grad.dtype;
      store_one(dtype, static_cast<char*>(args.grad.data) + index * size_of(dtype), values[0]);
    } else {
      put<kStored, T, V>(grad, index, n, values);
    }
  }
};

template <class T, int kStored, int V>
int64_t run(const RowNllArgs& args, const cuda::Place* place) {
  SoftmaxColumns<T, kStored, V> op(args);
  Room room = place != nullptr ? Room(*place) : Room();
  room.take(op.loss);
  if (place != nullptr) {
    launch(op, *place);
    add_up(&op.loss, nullptr, *place);
  }
  return room.used();
}

// Whether every class of every row allows vectors, and there are threads enough without them.
bool vectors(const RowNllArgs& args, int vector) {
  const auto address = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return args.rows * args.inner >= int64_t{32768} * vector && args.inner % vector == 0 &&
         args.row_stride % vector == 0 && args.class_stride % vector == 0 && address(args.params) &&
         address(args.grad.data);
}

}  // namespace

int64_t softmax_columns(const RowNllArgs& args, const cuda::Place* place) {
  if (args.classes > std::numeric_limits<int>::max())
    throw std::invalid_argument("vaefast: too many classes");
  if (args.wide) return run<double, kAny, 1>(args, place);
  if (args.dtype == DType::kF32 && vectors(args, 4)) return run<float, kFloat, 4>(args, place);
  if (args.dtype != DType::kF32 && vectors(args, 8)) return run<float, kHalf, 8>(args, place);
  return run<float, kAny, 1>(args, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
