// The log density of a mixture of diagonal Gaussians, and its gradients.
#include "cuda/gaussian_pairs.cuh"
#include "cuda/gaussian_pairs_backward.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// The densities of points from those under each share of the components. A unit is a thread.
template <class T>
struct GaussianMixtureDensities {
  static constexpr int kSums = 0, kBlocksPerSm = 4;
  using Sum = T;
  Work work;
  Density<T> density;
  const double* joints;
  int64_t splits;

  VAEFAST_MEMBER void run(int64_t point, int, Sum*) const {
    density.set(point, merged(joints + point, splits, work.units));
  }
};

template <class T>
int64_t run_forward(const GaussianMixtureArgs& args, const cuda::Place* place) {
  Room room = place != nullptr ? Room(*place) : Room();
  GaussianPairs<T, false> op(args, room);
  if (place == nullptr) return room.used();
  op.density = {args.joint, static_cast<T*>(args.values),
                args.log_weight - 0.5 * kLog2Pi * static_cast<double>(args.dims)};
  launch_blocks(op, *place);
  if (!op.whole())
    launch(GaussianMixtureDensities<T>{{args.points, 1, 1}, op.density, op.joints, op.cut.splits},
           *place);
  return room.used();
}

int64_t forward(const GaussianMixtureArgs& args, const cuda::Place* place) {
  return args.wide ? run_forward<double>(args, place) : run_forward<float>(args, place);
}

int64_t backward(const GaussianMixtureArgs& args, const cuda::Place* place) {
  return args.wide ? run_backward<double, false>(args, place)
                   : run_backward<float, false>(args, place);
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::mixture_log_prob(const GaussianMixtureArgs& args, const Place& place) {
  VAEFAST_ISA::forward(args, &place);
}

void cuda::mixture_log_prob_backward(const GaussianMixtureArgs& args, const Place& place) {
  VAEFAST_ISA::backward(args, &place);
}

int64_t cuda::mixture_log_prob_workspace(const GaussianMixtureArgs& args) {
  return VAEFAST_ISA::forward(args, nullptr);
}

int64_t cuda::mixture_log_prob_backward_workspace(const GaussianMixtureArgs& args) {
  return VAEFAST_ISA::backward(args, nullptr);
}

}  // namespace vaefast
