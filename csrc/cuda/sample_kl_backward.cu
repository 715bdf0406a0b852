// The gradients of z and of the KL, with the forward pass's noise made anew.
#include "cuda/launch.cuh"
#include "cuda/posterior.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <class K>
struct Backward {
  using T = typename K::T;
  static constexpr int kStored = K::kStored, V = K::V;
  static constexpr bool kPlain = K::kPlain;
  static constexpr int kSums = 0;
  static constexpr int kBlocksPerSm = sizeof(T) == 8 ? 1 : !kPlain || V > 4 ? 2 : 3;
  // The upstream gradient of the KL has the KL's type.
  static constexpr int kKl = kPlain ? kFloat : kAny;
  using Sum = T;
  Work work;
  Inputs<K> in;
  RowCut rows;
  Source grad_z, grad_kl;
  Target grad_mu, grad_scale, grad_prior_mu, grad_prior_scale;
  T factor;

  VAEFAST_MEMBER void run(int64_t unit, int lane, T*) const {
    const Walk walk = rows.template walk<V>(unit, lane);
    InputRows<K> at;
    at.enter_row(in, walk.row, walk.first);
    for (int col = walk.col; col < walk.count; col += walk.step) {
      const int n = walk.count - col < V ? walk.count - col : V;
      Walk here = walk;
      if constexpr (K::kPrior) {
        here = rows.template walk<V>(anew(unit), lane);
        at.enter_posterior(in, here.row, here.first);
      }
      // The samples' part first: while the noise is made, few registers are in use.
      const bool sampled = grad_z && grad_scale;
      T moved[V], spread[V];
#pragma unroll
      for (int j = 0; j < V; ++j) moved[j] = spread[j] = T(0);
      for (int k = 0; k == 0 || k < in.samples; ++k) {
        T eps[V], g[V];
        if (sampled) epsilon(in, at, here.row, here.first, col, k, n, eps);
        Raw<T, V> raw_z;
        if constexpr (K::kPrior) here = rows.template walk<V>(anew(unit), lane);
        const char* z_row = enter<kStored>(grad_z, here.row, here.first, k);
        fetch<kStored, true>(grad_z, z_row, col, n, raw_z);
        decode<kStored, true>(grad_z, raw_z, g);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          moved[j] += g[j];
          if (sampled) spread[j] = madd(g[j], eps[j], spread[j]);
        }
      }
      Vector<K> v;
      v.read_posterior(in, at, col, n);
      v.deviate();
      // dz/dscale over eps: temperature sigma / 2 dlogvar/dscale.
#pragma unroll
      for (int j = 0; j < V; ++j) {
        spread[j] *= T(0.5) * in.temperature * v.q.std[j];
        if (!kPlain) spread[j] *= v.q.slope[j];
      }
      if constexpr (K::kPrior) {
        here = rows.template walk<V>(anew(unit), lane);
        at.enter_others(in, here.row, here.first);
      }
      v.read_others(in, at, col, n);
      const int64_t start = here.row * in.shape.cols + here.first;
      Raw<T, V> raw_kl;
      const char* kl_row = enter<kKl>(grad_kl, here.row, here.first);
      fetch<kKl, true>(grad_kl, kl_row, col, n, raw_kl);
      T by_mu[V], by_scale[V];
      divergence(v, raw_kl, start + col, n, by_mu, by_scale);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        by_mu[j] += moved[j];
        if (sampled) by_scale[j] += spread[j];
      }
      if constexpr (K::kPrior) here = rows.template walk<V>(anew(unit), lane);
      const int64_t place = here.row * in.shape.cols + here.first + col;
      if (grad_mu) put<kStored, T, V>(grad_mu, place, n, by_mu);
      if (grad_scale) put<kStored, T, V>(grad_scale, place, n, by_scale);
    }
  }

  // The KL's part; elements that the mask leaves out get 0.
  VAEFAST_MEMBER void divergence(const Vector<K>& v, const Raw<T, V>& raw_kl, int64_t index, int n,
                                 T* by_mu, T* by_scale) const {
#pragma unroll
    for (int j = 0; j < V; ++j) by_mu[j] = by_scale[j] = T(0);
    if (!grad_kl) return;
    T g[V], by_prior[V], plain_grown[V];
    decode<kKl, true>(grad_kl, raw_kl, g);
    if constexpr (kPlain) v.template make<GrowthOf>(plain_grown);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      g[j] *= factor;
      if constexpr (!kPlain) {
        if (in.weight) g[j] *= v.weight[j];
      }
      // Of the distance, and of half the difference of the logvars.
      T mu_slope = v.mu[j], grown;
      if constexpr (K::kPrior) {
        T shrunk;
        kl_prior_slopes(v.mu[j] - v.prior_mu[j], v.q.logvar[j], v.prior.logvar[j], mu_slope, grown,
                        shrunk);
        by_prior[j] = T(0.5) * g[j] * shrunk * v.prior.slope[j];
      } else if constexpr (kPlain) {
        grown = plain_grown[j];
      } else {
        grown = of_logvar<GrowthOf>(v.q.logvar[j]);
      }
      by_mu[j] = g[j] * mu_slope;
      by_scale[j] = T(0.5) * g[j] * grown * v.q.slope[j];
      if (!v.keeps(in, j)) by_mu[j] = by_scale[j] = by_prior[j] = T(0);
    }
    if constexpr (K::kPrior) {
      if (grad_prior_scale) put<kAny, T, V>(grad_prior_scale, index, n, by_prior);
#pragma unroll
      for (int j = 0; j < V; ++j) by_prior[j] = -by_mu[j];
      if (grad_prior_mu) put<kAny, T, V>(grad_prior_mu, index, n, by_prior);
    }
  }
};

template <class K>
void run(const SampleKlArgs& args, const cuda::Place& place) {
  using T = typename K::T;
  constexpr int V = K::V;
  const Shape& shape = args.shape;
  const RowCut rows(shape.rows, shape.cols, V);
  const auto result = [&](const Output& out) { return target(out, shape.rows, shape.cols, V); };
  launch(Backward<K>{rows.work(false), Inputs<K>(args), rows, source<T>(args.grad_z, shape.rows, V),
                     source<T>(args.grad_kl, shape.rows, V), result(args.grad_mu),
                     result(args.grad_scale), result(args.grad_prior_mu),
                     result(args.grad_prior_scale), T(args.factor)},
         place);
}

template <int kStored, int V>
bool try_plain(const SampleKlArgs& args, const cuda::Place& place) {
  const int64_t rows = args.shape.rows, cols = args.shape.cols;
  if (!plain<V>(args, kStored) ||
      !known(source<float>(args.grad_z, rows, V), rows, kStored, true) ||
      !known(source<float>(args.grad_kl, rows, V), rows, kFloat, true) ||
      !known(target(args.grad_mu, rows, cols, V), kStored) ||
      !known(target(args.grad_scale, rows, cols, V), kStored))
    return false;
  run<Variant<float, kStored, V, false>>(args, place);
  return true;
}

template <class T>
void run_any(const SampleKlArgs& args, const cuda::Place& place) {
  if (has_prior(args)) return run<Variant<T, kAny, 4, true>>(args, place);
  run<Variant<T, kAny, 4, false>>(args, place);
}

// Rows that nothing tells apart become one: no row then begins where no vector can.
SampleKlArgs collapsed(SampleKlArgs args) {
  View* const views[] = {&args.mu,     &args.scale, &args.prior_mu, &args.prior_scale, &args.mask,
                         &args.weight, &args.noise, &args.grad_z,   &args.grad_kl};
  if (!args.state.per_sample) collapse(args.shape, args.shape.rows, views, 9);
  return args;
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::sample_kl_backward(const SampleKlArgs& given, const Place& place) {
  using namespace VAEFAST_ISA;
  if (given.kept != nullptr)
    throw std::invalid_argument("vaefast: on a GPU the derivative is not kept");
  if (given.sum_prior_mu != nullptr || given.sum_prior_scale != nullptr)
    throw std::invalid_argument("vaefast: on a GPU a prior's gradients are not summed");
  const SampleKlArgs args = collapsed(given);
  if (args.wide) return run_any<double>(args, place);
  if (try_plain<kFloat, 4>(args, place) || try_plain<kHalf, 8>(args, place)) return;
  run_any<float>(args, place);
}

}  // namespace vaefast
