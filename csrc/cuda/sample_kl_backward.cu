// The gradients of z and of the KL, with the forward pass's noise made anew.
#include "cuda/launch.cuh"
#include "cuda/posterior.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class T, int kStored, int V>
struct Backward {
  static constexpr bool kPlain = kStored != kAny;
  static constexpr int kSums = 0;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 ? 1 : !kPlain || V > 4 ? 2 : 3;
  // The upstream gradient of the KL has the KL's type.
  static constexpr int kKl = kPlain ? kStoredAs<DType::kF32> : kAny;
  using Sum = T;
  Work work;
  Inputs<T, kStored, V> in;
  RowCut rows;
  Source grad_z, grad_kl;
  Target grad_mu, grad_scale, grad_prior_mu, grad_prior_scale;
  T factor;

  VAEFAST_MEMBER void run(int64_t unit, int lane, T*) const {
    const Walk walk = rows.template walk<V>(unit, lane);
    const int64_t start = walk.row * in.shape.cols + walk.first;
    InputRows<T, kStored, V> at;
    at.enter_row(in, walk.row, walk.first);
    const Row<T> kl_row = enter<kKl, kKl, T>(grad_kl, walk.row, walk.first);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      Raw<T, V> raw_kl;
      fetch<kKl, true>(grad_kl, kl_row, col, n, raw_kl);
      Vector<T, kStored, V> v;
      T by_mu[V], by_scale[V];
      // The first sample's noise comes before the loads, while few registers are in use.
      for (int64_t k = 0; k == 0 || k < in.samples; ++k) {
        T eps[V], g[V];
        const bool sampled = grad_z && grad_scale;
        if (sampled) epsilon(in, at, walk.row, walk.first, col, k, n, eps);
        Raw<T, V> raw_z;
        const Row<T> z_row = enter<kStored, kStored, T>(grad_z, walk.row, walk.first, k);
        fetch<kStored, true>(grad_z, z_row, col, n, raw_z);
        if (k == 0) {
          v.read(in, at, col, n);
          divergence(v, kl_row, raw_kl, start + col, n, by_mu, by_scale);
        }
        decode<kStored, true>(grad_z, z_row, raw_z, g);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          by_mu[j] += g[j];
          if (sampled) by_scale[j] += g[j] * slope(v, j) * eps[j];
        }
      }
      if (grad_mu) put<kStored, T, V>(grad_mu, start + col, n, by_mu);
      if (grad_scale) put<kStored, T, V>(grad_scale, start + col, n, by_scale);
    }
  }

  // dz/dscale over eps: temperature sigma / 2 dlogvar/dscale.
  VAEFAST_MEMBER T slope(const Vector<T, kStored, V>& v, int j) const {
    const T half = T(0.5) * in.temperature * v.q.std[j];
    return kPlain ? half : half * v.q.slope[j];
  }

  // The KL's part; elements that the mask leaves out get 0.
  VAEFAST_MEMBER void divergence(const Vector<T, kStored, V>& v, const Row<T>& kl_row,
                                 const Raw<T, V>& raw_kl, int64_t index, int n, T* by_mu,
                                 T* by_scale) const {
#pragma unroll
    for (int j = 0; j < V; ++j) by_mu[j] = by_scale[j] = T(0);
    if (!grad_kl) return;
    T upstream[V], by_prior_mu[V], by_prior_scale[V];
    decode<kKl, true>(grad_kl, kl_row, raw_kl, upstream);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      T g = upstream[j] * factor;
      if constexpr (!kPlain) {
        if (in.weight) g *= v.weight[j];
      }
      const bool keeps = v.keeps(in, j);
      if (in.has_prior()) {
        const T distance = v.mu[j] - v.prior_mu[j];
        const T pull = distance * exp(-v.prior.logvar[j]);
        const T grown = expm1(v.q.logvar[j] - v.prior.logvar[j]);
        const T prior_scale = T(-0.5) * g * madd(distance, pull, grown) * v.prior.slope[j];
        by_mu[j] = keeps ? g * pull : T(0);
        by_scale[j] = keeps ? T(0.5) * g * grown * v.q.slope[j] : T(0);
        by_prior_mu[j] = keeps ? -g * pull : T(0);
        by_prior_scale[j] = keeps ? prior_scale : T(0);
      } else {
        by_mu[j] = keeps ? g * v.mu[j] : T(0);
        by_scale[j] = keeps ? T(0.5) * g * expm1(v.q.logvar[j]) * v.q.slope[j] : T(0);
      }
    }
    if constexpr (!kPlain) {
      if (grad_prior_mu) put<kAny, T, V>(grad_prior_mu, index, n, by_prior_mu);
      if (grad_prior_scale) put<kAny, T, V>(grad_prior_scale, index, n, by_prior_scale);
    }
  }
};

template <class T, int kStored, int V>
void run(const SampleKlArgs& args, const cuda::Place& place) {
  const Shape& shape = args.shape;
  const RowCut rows(shape.rows, shape.cols, V);
  const auto result = [&](const Output& out) { return target(out, shape.rows, shape.cols, V); };
  launch(Backward<T, kStored, V>{rows.work(false), Inputs<T, kStored, V>(args), rows,
                                 source<T>(args.grad_z, shape.rows, V), source<T>(args.grad_kl, shape.rows, V),
                                 result(args.grad_mu), result(args.grad_scale),
                                 result(args.grad_prior_mu), result(args.grad_prior_scale),
                                 T(args.factor)},
         place);
}

template <DType kType, int V>
bool try_plain(const SampleKlArgs& args, const cuda::Place& place) {
  const int64_t rows = args.shape.rows, cols = args.shape.cols;
  if (!plain<V>(args, kType) || !known(source<float>(args.grad_z, rows, V), rows, kType, true) ||
      !known(source<float>(args.grad_kl, rows, V), rows, DType::kF32, true) ||
      !known(target(args.grad_mu, rows, cols, V), kType) ||
      !known(target(args.grad_scale, rows, cols, V), kType))
    return false;
  run<float, kStoredAs<kType>, V>(args, place);
  return true;
}

// Rows that nothing tells apart become one: no row then begins where no vector can.
SampleKlArgs collapsed(SampleKlArgs args) {
  View* const views[] = {&args.mu,   &args.scale,  &args.prior_mu, &args.prior_scale, &args.mask,
                         &args.weight, &args.noise, &args.grad_z,   &args.grad_kl};
  if (!args.stream.per_sample) collapse(args.shape, args.shape.rows, views, 9);
  return args;
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::sample_kl_backward(const SampleKlArgs& given, const Place& place) {
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

}  // namespace vaefast
