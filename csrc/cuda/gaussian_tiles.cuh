// Points against diagonal Gaussians in tiles: what mixture_log_prob and tc_terms share.
//
// In base 2, with rate = kUnitRate / sigma and u = (z - mu) rate, the log density of a dimension is
// log2(rate) - u^2 and a constant, and that of all of them level - sum u^2 and another, where
// level = log2(weight) - log2(e) / 2 sum logvar. The constants are added last, in double.
#pragma once

#include "cuda/pairs.cuh"
#include "math/gaussian.h"

namespace vaefast {
namespace VAEFAST_ISA {

// A mean that is far from every point, whose square is finite still: that of a component that there
// is not. Its products with 0 are 0, which those of infinity are not.
VAEFAST_FN float far_mean(float) { return 1e18f; }
VAEFAST_FN double far_mean(double) { return 1e150; }

// The pairs whose weight differs from the others': a point's own component and the one after it.
template <class T>
struct Special {
  int64_t first = 0, components = 0;
  T own = T(1), stratum = T(1);
  bool any = false;

  Special() = default;
  explicit Special(const GaussianMixtureArgs& args)
      : first(args.first),
        components(args.components),
        own(static_cast<T>(args.own)),
        stratum(static_cast<T>(args.stratum)),
        any(args.own != 1 || args.stratum != 1) {}

  // Whether a tile that begins with these may have one.
  VAEFAST_MEMBER bool meets(int64_t point, int64_t component, int64_t side) const {
    const int64_t from = first + point, to = from + side;
    return any &&
           ((component <= to && component + side > from) || (component == 0 && to >= components));
  }

  // A point's own component and the one after it, counted from `component` on. One that is its own
  // successor has its own weight alone.
  VAEFAST_MEMBER void find(int64_t point, int64_t component, int& mine, int& next) const {
    const int64_t at = first + point, after = at + 1 == components ? 0 : at + 1;
    mine = static_cast<int>(at - component);
    next = static_cast<int>(after - component);
  }
};

// kMarginals: for a kernel that sums over each dimension too.
template <class T, bool kMarginals>
struct GaussianTiles {
  using Tile = PairTile<T>;
  using Vec = typename Tile::Vec;
  static constexpr int kEach = Tile::kEach, kGroups = Tile::kGroups, kSide = Tile::kSide;
  static constexpr int kDims = 32, kHeld = kDims / kGroups, kLoaders = kThreads / kSide;
  // Loads under way, and dimensions of u^2 at once: more, and registers spill.
  static constexpr int kLoads = kMarginals || sizeof(T) == 8 ? 1 : 2;
  static constexpr int kUnroll = sizeof(T) == 8 ? 2 : 4;

  struct Shared {
    Vec z[kDims * kGroups], mean[kDims * kGroups], rate[kDims * kGroups];
    // Each loading thread's part.
    T level[kLoaders][kSide];
    // Of each point, among the tile's components: where weights differ.
    int mine[kSide], next[kSide];
  };

  Points<T> z, mu, logvar;
  const T* log_weights = nullptr;
  Special<T> special;
  int64_t chunks = 1;

  GaussianTiles() = default;
  explicit GaussianTiles(const GaussianMixtureArgs& args)
      : z(args.z, args.points, args.dims),
        mu(args.mu, args.components, args.dims),
        logvar(args.logvar, args.components, args.dims),
        log_weights(static_cast<const T*>(args.log_weights)),
        special(args),
        chunks(args.dims > kDims ? divide_up(args.dims, kDims) : 1) {}

  int64_t point_tiles() const { return divide_up(z.count, kSide); }
  int64_t component_tiles() const { return divide_up(mu.count, kSide); }

  VAEFAST_MEMBER static int dim_of(int thread, int k) { return Tile::col(thread) + k * kGroups; }

  VAEFAST_MEMBER void load_points(int64_t first, int64_t dim, int thread, Shared& shared) const {
    Tile::template read<kDims, kLoads>(z, first, dim, thread, [&](int d, int point, T value) {
      Tile::set(shared.z, d, point, value);
    });
  }

  // Adds the dimensions' part of the level to `level`.
  VAEFAST_MEMBER void load_components(int64_t first, int64_t dim, int thread, Shared& shared,
                                      T& level) const {
    Tile::template read<kDims, kLoads>(mu, first, dim, thread, [&](int d, int point, T value) {
      Tile::set(shared.mean, d, point, first + point < mu.count ? value : far_mean(T(0)));
    });
    Tile::template read<kDims, kLoads>(logvar, first, dim, thread, [&](int d, int point, T value) {
      Tile::set(shared.rate, d, point, rate_of(value));
      level = madd(T(-0.5 * kLog2E), value, level);
    });
  }

  VAEFAST_MEMBER void put_level(int64_t first, int thread, T level, Shared& shared) const {
    thread = made_anew(thread);
    const int64_t own = first + thread % kSide;
    if (own >= mu.count) {
      level = T(-kInf);
    } else if (log_weights != nullptr && thread < kSide) {
      level = madd(T(kLog2E), log_weights[own], level);
    }
    shared.level[thread / kSide][thread % kSide] = level;
  }

  VAEFAST_MEMBER void find_special(int64_t point, int64_t component, int thread,
                                   Shared& shared) const {
    if (thread < kSide)
      special.find(point + thread, component, shared.mine[thread], shared.next[thread]);
  }

  VAEFAST_MEMBER T weight(const Shared& shared, int point, int component) const {
    return component == shared.mine[point]   ? special.own
           : component == shared.next[point] ? special.stratum
                                             : T(1);
  }

  VAEFAST_MEMBER static T level_of(const Shared& shared, int component) {
    T level = shared.level[0][component];
#pragma unroll
    for (int i = 1; i < kLoaders; ++i) level += shared.level[i][component];
    return level;
  }

  // Adds u^2 of the loaded dimensions for a thread's pairs, whose rows are points or components.
  template <bool kPointRows>
  VAEFAST_MEMBER void add_squares(int64_t dim, int thread, const Shared& shared,
                                  T (&squares)[kEach][kEach]) const {
    const int row = Tile::row(thread), col = Tile::col(thread);
    const int left = static_cast<int>(mu.dims - dim < kDims ? mu.dims - dim : kDims);
#pragma unroll kUnroll
    for (int d = 0; d < left; ++d) {
      const int of_points = Tile::place(d, kPointRows ? row : col);
      const int of_components = Tile::place(d, kPointRows ? col : row);
      const Vec point = shared.z[of_points];
      const Vec mean = shared.mean[of_components], rate = shared.rate[of_components];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          const int p = kPointRows ? i : j, c = kPointRows ? j : i;
          const T u = (point.v[p] - mean.v[c]) * rate.v[c];
          squares[i][j] = madd(u, u, squares[i][j]);
        }
      }
    }
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
