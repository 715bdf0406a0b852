// Adds up the shares' copies of the gradients that mixture_log_prob and tc_terms have.
#include "cuda/gaussian_pairs_backward.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// A unit is a warp.
template <class T>
struct GaussianGradients {
  static constexpr int kSums = 0, kBlocksPerSm = 4;
  using Sum = T;
  Work work;
  Copied<T> grads[4];

  explicit GaussianGradients(const Copied<T> (&results)[4]) : work{0, kWarp, kWarp} {
    for (int i = 0; i < 4; ++i) {
      grads[i] = results[i];
      work.units += grads[i].units();
    }
  }

  VAEFAST_MEMBER void run(int64_t unit, int lane, Sum*) const { add_up_one_of(grads, unit, lane); }
};

}  // namespace

void add_up(const Copied<float> (&grads)[4], const cuda::Place& place) {
  launch(GaussianGradients<float>(grads), place);
}

void add_up(const Copied<double> (&grads)[4], const cuda::Place& place) {
  launch(GaussianGradients<double>(grads), place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
