// z = mu + temperature sigma eps and KL(q || p): the forward pass.
#include "cuda/posterior.cuh"
#include "cuda/totals.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class K, bool kPerDim>
struct Forward {
  using T = typename K::T;
  static constexpr int kStored = K::kStored, V = K::V;
  static constexpr bool kPlain = K::kPlain;
  static constexpr int kSums = 1;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 ? 1 : !kPlain || V > 4 || kPerDim ? 2 : 3;
  using Sum = T;
  Work work;
  Inputs<K> in;
  RowCut rows;
  DimCut dims;
  bool want_kl;
  T factor;
  Target z, elements;
  Total total;

  explicit Forward(const SampleKlArgs& args)
      : in(args),
        rows(in.shape.rows, in.shape.cols, V),
        dims(in.shape, V),
        want_kl(args.reduce != Reduce::kNone),
        factor(T(args.factor)),
        z(target(args.z, in.shape.rows * (in.samples > 1 ? in.samples : 1), in.shape.cols, V)) {
    work = kPerDim ? dims.work() : rows.work(args.reduce == Reduce::kSum);
    if (args.reduce == Reduce::kElem) {
      const Output out{args.kl, args.wide ? DType::kF64 : DType::kF32};
      elements = target(out, in.shape.rows, in.shape.cols, V);
    } else if (args.reduce == Reduce::kSample) {
      total = per_sample(args.kl, in.shape, rows, args.factor, args.wide);
    } else if (args.reduce == Reduce::kSum) {
      total = {args.kl, nullptr, 1, work.sums(), 0, 1, args.factor, args.wide};
    } else if (kPerDim) {
      const int64_t width = dims.width();
      total = {args.kl, nullptr, width, dims.slices, 1, width, args.factor, args.wide};
    }
  }

  VAEFAST_MEMBER bool sums_up() const { return !kPerDim && total; }

  VAEFAST_MEMBER void finish(int64_t index, const T* sums) const {
    total.add(index, static_cast<double>(sums[0]));
  }

  VAEFAST_MEMBER void run(int64_t unit, int lane, T* sums) const {
    settle(in.state, unit, lane);
    InputRows<K> at;
    if constexpr (kPerDim) {
      const DimWalk walk = dims.template walk<V>(unit, lane);
      const int n = static_cast<int>(walk.end - walk.col < V ? walk.end - walk.col : V);
      T columns[V], kl[V];
#pragma unroll
      for (int j = 0; j < V; ++j) columns[j] = T(0);
      for (int64_t i = 0; i < walk.count; ++i) {
        const int64_t row = walk.row + i * dims.segments;
        at.enter_posterior(in, row, walk.col);
        if constexpr (!K::kPrior) at.enter_others(in, row, walk.col);
        vector(at, row, walk.col, 0, n, kl);
#pragma unroll
        for (int j = 0; j < V; ++j) columns[j] += kl[j];
      }
      const int64_t place = remainder(walk.row, dims.segments) * dims.cols + walk.col;
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (walk.count > 0 && j < n)
          total.add(dims.slice(unit) * dims.width() + place + j, static_cast<double>(columns[j]));
    } else {
      const Walk walk = rows.template walk<V>(unit, lane);
      at.enter_posterior(in, walk.row, walk.first);
      if constexpr (!K::kPrior) at.enter_others(in, walk.row, walk.first);
      for (int col = walk.col; col < walk.count; col += walk.step) {
        const int n = walk.count - col < V ? walk.count - col : V;
        T kl[V] = {};
        vector(at, walk.row, walk.first, col, n, kl);
        sums[0] += sum_of<T, V>(kl, n);
      }
    }
  }

  // Writes z, and the KL where that is wanted per element; else it is `kl`.
  VAEFAST_MEMBER void vector(InputRows<K>& at, int64_t row, int64_t first, int col, int n,
                             T* kl) const {
    Vector<K> v;
    v.read_posterior(in, at, col, n);
    if (in.samples > 0) {
      v.deviate();
      sample(at, v, row, first, col, n);
    }
    if (!want_kl) return;
    // While the noise is made, the prior would fill registers.
    if constexpr (K::kPrior) at.enter_others(in, anew(row), first);
    v.read_others(in, at, col, n);
    divergence(v, kl);
    if constexpr (!kPerDim) {
      if (!elements) return;
#pragma unroll
      for (int j = 0; j < V; ++j) kl[j] *= factor;
      put<kAny, T, V>(elements, row * in.shape.cols + first + col, n, kl);
    }
  }

  VAEFAST_MEMBER void sample(const InputRows<K>& at, const Vector<K>& v, int64_t row, int64_t first,
                             int col, int n) const {
    for (int k = 0; k < in.samples; ++k) {
      T eps[V];
      epsilon(in, at, row, first, col, k, n, eps);
#pragma unroll
      for (int j = 0; j < V; ++j) eps[j] = madd(in.temperature * v.q.std[j], eps[j], v.mu[j]);
      put<kStored, T, V>(z, row * in.shape.cols + first + col + k * in.sample_size, n, eps);
    }
  }

  VAEFAST_MEMBER void divergence(const Vector<K>& v, T* kl) const {
    if constexpr (K::kPrior) {
#pragma unroll
      for (int j = 0; j < V; ++j)
        kl[j] = kl_prior(v.mu[j] - v.prior_mu[j], v.q.logvar[j], v.prior.logvar[j]);
    } else if constexpr (kPlain) {
      v.template make<ExcessOf>(kl);
#pragma unroll
      for (int j = 0; j < V; ++j) kl[j] = kl_of(v.mu[j], kl[j]);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) kl[j] = kl_standard(v.mu[j], v.q.logvar[j]);
    }
    if constexpr (!kPlain) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (in.weight) kl[j] *= v.weight[j];
        kl[j] = v.keeps(in, j) ? kl[j] : T(0);
      }
    }
  }
};

template <class K, bool kPerDim>
void run_as(const SampleKlArgs& args, const cuda::Place& place) {
  Forward<K, kPerDim> op(args);
  lay_out(&op.total, nullptr, place);
  launch(op, place);
  add_up(&op.total, nullptr, place);
}

template <class K>
void run(const SampleKlArgs& args, const cuda::Place& place) {
  if (args.reduce == Reduce::kDim) return run_as<K, true>(args, place);
  run_as<K, false>(args, place);
}

template <class T>
void run_any(const SampleKlArgs& args, const cuda::Place& place) {
  if (has_prior(args)) return run<Variant<T, kAny, 4, true>>(args, place);
  run<Variant<T, kAny, 4, false>>(args, place);
}

// Rows that nothing tells apart become one: no row then begins where no vector can.
SampleKlArgs collapsed(SampleKlArgs args) {
  const bool whole = args.reduce != Reduce::kSample && args.reduce != Reduce::kDim;
  View* const views[] = {&args.mu,   &args.scale,  &args.prior_mu, &args.prior_scale,
                         &args.mask, &args.weight, &args.noise};
  if (whole && !args.state.per_sample) collapse(args.shape, args.shape.rows, views, 7);
  return args;
}

template <int kStored, int V>
bool try_plain(const SampleKlArgs& args, const cuda::Place& place) {
  const int64_t rows = args.shape.rows * (args.samples > 1 ? args.samples : 1);
  if (!plain<V>(args, kStored) || !known(target(args.z, rows, args.shape.cols, V), kStored))
    return false;
  run<Variant<float, kStored, V, false>>(args, place);
  return true;
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::sample_kl(const SampleKlArgs& given, const Place& place) {
  using namespace VAEFAST_ISA;
  if (given.kept != nullptr)
    throw std::invalid_argument("vaefast: on a GPU the derivative is not kept");
  const SampleKlArgs args = collapsed(given);
  if (args.wide) return run_any<double>(args, place);
  if (try_plain<kFloat, 4>(args, place) || try_plain<kHalf, 8>(args, place)) return;
  run_any<float>(args, place);
}

int64_t cuda::workspace(const Shape& shape, Reduce reduce, bool scalar_grad, int64_t target_rows) {
  using namespace VAEFAST_ISA;
  int64_t most = 0;
  for (int vector : {4, 8}) {
    int64_t sums = 0;
    if (reduce == Reduce::kDim) {
      const DimCut cut(shape, vector);
      sums = cut.slices * cut.width();
    }
    // Whole, collapsed to the rows of several samples of z, collapsed to one row.
    for (int64_t times : {int64_t{1}, target_rows, shape.rows}) {
      if (times <= 0 || reduce == Reduce::kDim || shape.rows % times != 0) continue;
      const RowCut cut(shape.rows / times, shape.cols * times, vector);
      // Samples stay apart, and the sum of one in one piece is the result.
      if (reduce == Reduce::kSample && (times > 1 || shape.segments * cut.pieces == 1)) continue;
      const int64_t found = cut.work(reduce == Reduce::kSum && !scalar_grad).sums();
      if (reduce == Reduce::kSample || reduce == Reduce::kSum) sums = found > sums ? found : sums;
    }
    if (scalar_grad) sums += shape.rows * RowCut(shape.rows, shape.cols, vector).pieces;
    most = sums > most ? sums : most;
  }
  return most * static_cast<int64_t>(sizeof(double));
}

}  // namespace vaefast
