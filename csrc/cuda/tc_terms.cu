// The terms of beta-TCVAE's decomposition of the KL, over all pairs of a sample and a posterior,
// and their gradients.
#include "cuda/gaussian_pairs.cuh"
#include "cuda/gaussian_pairs_backward.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// The terms from the sums under each share of the posteriors. A unit is a point, its lanes have the
// dimensions; their sums are log prod_d q(z_d) and -2 log q(z|x) and -2 log p(z) but for constants.
template <class T>
struct TcTerms {
  static constexpr int kSums = 3, kBlocksPerSm = 2;
  using Sum = double;
  Work work;
  GaussianTiles<T, true> tiles;
  // [splits, points] and [splits, points, dims]
  const double *joints, *marginals;
  int64_t splits;
  double log_weight;
  // [points] and [points, dims], for the backward pass; mi, tc and dim_kl [3, points].
  double* joint;
  T *each, *values;

  VAEFAST_MEMBER bool sums_up() const { return true; }

  VAEFAST_MEMBER void run(int64_t point, int lane, double* sums) const {
    const int64_t dims = tiles.z.dims, own = (tiles.special.first + point) * dims;
    // The logarithm of what every share's sum is short of.
    const double rest = log_weight - 0.5 * kLog2Pi - log(kUnitRate);
    for (int64_t d = lane; d < dims; d += work.lanes) {
      const int64_t at = point * dims + d;
      const double log2 = merged(marginals + at, splits, tiles.z.count * dims);
      each[at] = static_cast<T>(log2);
      const double z = tiles.z.data[at], t = z - static_cast<double>(tiles.mu.data[own + d]);
      const double logvar = tiles.logvar.data[own + d];
      sums[0] += log2 * kLn2 + rest;
      const double root = whitening_root(logvar), near = t * root * root;
      sums[1] += near * near + logvar;
      sums[2] += z * z;
    }
  }

  VAEFAST_MEMBER void finish(int64_t point, const double* sums) const {
    const int64_t count = tiles.z.count;
    const double constant = static_cast<double>(tiles.z.dims) * kLog2Pi;
    const double log2 = merged(joints + point, splits, count);
    const double log_qz = log2 * kLn2 - 0.5 * constant + log_weight;
    joint[point] = log2;
    values[point] = static_cast<T>(-0.5 * (sums[1] + constant) - log_qz);
    values[count + point] = static_cast<T>(log_qz - sums[0]);
    values[2 * count + point] = static_cast<T>(sums[0] + 0.5 * (sums[2] + constant));
  }
};

template <class T>
int64_t run_forward(const GaussianMixtureArgs& args, const cuda::Place* place) {
  Room room = place != nullptr ? Room(*place) : Room();
  const GaussianPairs<T, true> op(args, room);
  if (place == nullptr) return room.used();
  launch_blocks(op, *place);
  const int lanes = args.dims >= kWarp ? kWarp : static_cast<int>(power_of_two(args.dims));
  launch(TcTerms<T>{{args.points, lanes, lanes},
                    op.tiles,
                    op.joints,
                    op.marginals,
                    op.cut.splits,
                    args.log_weight,
                    args.joint,
                    static_cast<T*>(args.marginals),
                    static_cast<T*>(args.values)},
         *place);
  return room.used();
}

int64_t forward(const GaussianMixtureArgs& args, const cuda::Place* place) {
  return args.wide ? run_forward<double>(args, place) : run_forward<float>(args, place);
}

int64_t backward(const GaussianMixtureArgs& args, const cuda::Place* place) {
  return args.wide ? run_backward<double, true>(args, place)
                   : run_backward<float, true>(args, place);
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::tc_terms(const GaussianMixtureArgs& args, const Place& place) {
  VAEFAST_ISA::forward(args, &place);
}

void cuda::tc_terms_backward(const GaussianMixtureArgs& args, const Place& place) {
  VAEFAST_ISA::backward(args, &place);
}

int64_t cuda::tc_terms_workspace(const GaussianMixtureArgs& args) {
  return VAEFAST_ISA::forward(args, nullptr);
}

int64_t cuda::tc_terms_backward_workspace(const GaussianMixtureArgs& args) {
  return VAEFAST_ISA::backward(args, nullptr);
}

}  // namespace vaefast
