// z = mu + temperature sigma eps and KL(q || p): the forward pass.
#include "cuda/posterior.cuh"
#include "cuda/totals.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class T, int kStored, int V, bool kPerDim>
struct Forward {
  static constexpr bool kPlain = kStored != kAny;
  static constexpr int kSums = 1;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 ? 1 : !kPlain || V > 4 ? 2 : kPerDim ? 3 : 4;
  using Sum = T;
  Work work;
  Inputs<T, kStored, V> in;
  RowCut rows;
  DimCut dims;
  bool want_kl;
  T factor;
  Target z, elements;
  Total total;

  VAEFAST_MEMBER bool sums_up() const { return !kPerDim && total; }

  VAEFAST_MEMBER void finish(int64_t index, const T* sums) const {
    total.add(index, static_cast<double>(sums[0]));
  }

  VAEFAST_MEMBER void run(int64_t unit, int lane, T* sums) const {
    InputRows<T, kStored, V> at;
    if constexpr (kPerDim) {
      const DimWalk walk = dims.template walk<V>(unit, lane);
      const int n = static_cast<int>(walk.end - walk.col < V ? walk.end - walk.col : V);
      T columns[V], kl[V];
#pragma unroll
      for (int j = 0; j < V; ++j) columns[j] = T(0);
      for (int64_t i = 0; i < walk.count; ++i) {
        const int64_t row = walk.row + i * dims.segments;
        at.enter_row(in, row, walk.col);
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
      at.enter_row(in, walk.row, walk.first);
      for (int col = walk.col; col < walk.count; col += walk.step) {
        const int n = walk.count - col < V ? walk.count - col : V;
        T kl[V];
        vector(at, walk.row, walk.first, col, n, kl);
        if (total) sums[0] += sum_of<T, V>(kl, n);
      }
    }
  }

  // Writes z, and the KL where that is wanted per element; else it is `kl`.
  VAEFAST_MEMBER void vector(const InputRows<T, kStored, V>& at, int64_t row,
                             int64_t first, int col, int n, T* kl) const {
    Vector<T, kStored, V> v;
    v.read(in, at, col, n);
    if (in.samples > 0) sample(at, v, row, first, col, n);
    if (!want_kl) return;
    divergence(v, kl);
    if (kPerDim || !elements) return;
#pragma unroll
    for (int j = 0; j < V; ++j) kl[j] *= factor;
    put<kAny, T, V>(elements, row * in.shape.cols + first + col, n, kl);
  }

  VAEFAST_MEMBER void sample(const InputRows<T, kStored, V>& at, const Vector<T, kStored, V>& v,
                             int64_t row, int64_t first, int col, int n) const {
    for (int64_t k = 0; k < in.samples; ++k) {
      T eps[V];
      epsilon(in, at, row, first, col, k, n, eps);
#pragma unroll
      for (int j = 0; j < V; ++j) eps[j] = madd(in.temperature * v.q.std[j], eps[j], v.mu[j]);
      put<kStored, T, V>(z, (row + k * in.shape.rows) * in.shape.cols + first + col, n, eps);
    }
  }

  VAEFAST_MEMBER void divergence(const Vector<T, kStored, V>& v, T* kl) const {
    if (in.has_prior()) {
#pragma unroll
      for (int j = 0; j < V; ++j)
        kl[j] = kl_prior(v.mu[j] - v.prior_mu[j], v.q.logvar[j], v.prior.logvar[j]);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) kl[j] = kl_standard(v.mu[j], v.q.logvar[j]);
    }
    if constexpr (!kPlain) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        kl[j] = v.keeps(in, j) ? kl[j] : T(0);
        if (in.weight) kl[j] *= v.weight[j];
      }
    }
  }
};

template <class T, int kStored, int V, bool kPerDim>
void run_as(const SampleKlArgs& args, const cuda::Place& place) {
  const Shape& shape = args.shape;
  const RowCut rows(shape.rows, shape.cols, V);
  const DimCut dims(shape, V);
  const DType kl_type = args.wide ? DType::kF64 : DType::kF32;
  Forward<T, kStored, V, kPerDim> op{
      kPerDim ? dims.work() : rows.work(args.reduce == Reduce::kSum),
      Inputs<T, kStored, V>(args),
      rows,
      dims,
      args.reduce != Reduce::kNone,
      T(args.factor),
      target(args.z, shape.rows * (args.samples > 1 ? args.samples : 1), shape.cols, V)};
  if (args.reduce == Reduce::kElem) {
    op.elements = target({args.kl, kl_type}, shape.rows, shape.cols, V);
  } else if (args.reduce == Reduce::kSample) {
    op.total = per_sample(args.kl, shape, rows, args.factor, args.wide);
  } else if (args.reduce == Reduce::kSum) {
    op.total = {args.kl, nullptr, 1, op.work.sums(), 0, 1, args.factor, args.wide};
  } else if (kPerDim) {
    op.total = {args.kl, nullptr, dims.width(), dims.slices, 1, dims.width(), args.factor,
                args.wide};
  }
  lay_out(&op.total, nullptr, place);
  launch(op, place);
  add_up(&op.total, nullptr, place);
}

template <class T, int kStored, int V>
void run(const SampleKlArgs& args, const cuda::Place& place) {
  if (args.reduce == Reduce::kDim) return run_as<T, kStored, V, true>(args, place);
  run_as<T, kStored, V, false>(args, place);
}

// Rows that nothing tells apart become one: no row then begins where no vector can.
SampleKlArgs collapsed(SampleKlArgs args) {
  const bool whole = args.reduce != Reduce::kSample && args.reduce != Reduce::kDim;
  View* const views[] = {&args.mu,   &args.scale,  &args.prior_mu, &args.prior_scale,
                         &args.mask, &args.weight, &args.noise};
  if (whole && !args.stream.per_sample) collapse(args.shape, args.shape.rows, views, 7);
  return args;
}

template <DType kType, int V>
bool try_plain(const SampleKlArgs& args, const cuda::Place& place) {
  const int64_t rows = args.shape.rows * (args.samples > 1 ? args.samples : 1);
  if (!plain<V>(args, kType) || !known(target(args.z, rows, args.shape.cols, V), kType)) return false;
  run<float, kStoredAs<kType>, V>(args, place);
  return true;
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::sample_kl(const SampleKlArgs& given, const Place& place) {
  using namespace VAEFAST_ISA;
  if (given.kept != nullptr)
    throw std::invalid_argument("vaefast: on a GPU the derivative is not kept");
  const SampleKlArgs args = collapsed(given);
  if (args.wide) return run<double, kAny, 4>(args, place);
  if (try_plain<DType::kF32, 4>(args, place)) return;
  if (try_plain<DType::kBF16, 8>(args, place)) return;
  if (try_plain<DType::kF16, 8>(args, place)) return;
  run<float, kAny, 4>(args, place);
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
      const int64_t found = cut.work(reduce == Reduce::kSum && !scalar_grad).sums();
      if (reduce == Reduce::kSample || reduce == Reduce::kSum) sums = found > sums ? found : sums;
    }
    if (scalar_grad) sums += shape.rows * RowCut(shape.rows, shape.cols, vector).pieces;
    most = sums > most ? sums : most;
  }
  return most * static_cast<int64_t>(sizeof(double));
}

}  // namespace vaefast
