// Points against diagonal Gaussians, forward: the sums over the components.
#pragma once

#include "cuda/gaussian_tiles.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

// log2 of a sum from the logarithms of its `count` parts, `step` apart.
VAEFAST_FN double merged(const double* parts, int64_t count, int64_t step) {
  double top = -kInf, sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double part = parts[i * step];
    top = part > top ? part : top;
  }
  const double shift = top > -kInf ? top : 0;
  for (int64_t i = 0; i < count; ++i) sum += exp2(parts[i * step] - shift);
  return shift + kLog2E * log(sum);
}

// The logarithm of a point's density, and what the backward pass needs of it.
template <class T>
struct Density {
  double* joint = nullptr;
  T* values = nullptr;
  double constant = 0;

  VAEFAST_MEMBER void set(int64_t point, double log2) const {
    joint[point] = log2;
    values[point] = static_cast<T>(log2 * kLn2 + constant);
  }
};

// The sums over a share of the components of weight 2^(level - sum u^2) for each point, and with
// kMarginals of weight 2^-u^2 rate for each of its dimensions, as logarithms.
template <class T, bool kMarginals>
struct GaussianPairs {
  using Tiles = GaussianTiles<T, kMarginals>;
  using Tile = PairTile<T>;
  using Vec = typename Tile::Vec;
  // Two blocks' registers do not hold the sums over dimensions in double.
  static constexpr int kBlocksPerSm = kMarginals && sizeof(T) == 8 ? 1 : 2;
  static constexpr int kEach = Tile::kEach, kGroups = Tile::kGroups, kSide = Tile::kSide;
  static constexpr int kDims = Tiles::kDims, kHeld = Tiles::kHeld;
  // The exponent that the terms of a dimension may reach before their sum gets a new base; and what
  // is above every base.
  static constexpr int kSlack = 32;
  static constexpr T kMost = sizeof(T) == 4 ? T(3e38) : T(1e300);

  struct Shared : Tiles::Shared {
    T tops[kSide][kGroups], sums[kSide][kGroups];
  };

  struct Thread {
    T level, squares[kEach][kEach], top[kEach], sum[kEach];
    // Of the block's dimensions: the sums of 2^(base - u^2) rate.
    T base[kEach][kHeld], total[kEach][kHeld];
  };

  Tiles tiles;
  TileCut cut;
  int64_t blocks = 0;
  // [splits, points] and [splits, points, dims]
  double *joints = nullptr, *marginals = nullptr;
  // Without marginals, a share that is the only one has the result.
  Density<T> density;

  GaussianPairs(const GaussianMixtureArgs& args, Room& room) : tiles(args) {
    cut.tiles = tiles.point_tiles();
    cut.inner = tiles.component_tiles();
    if (kMarginals) cut.chunks = tiles.chunks;
    cut.share(tiles_each({&cut}, wave_of<GaussianPairs>()));
    blocks = cut.blocks();
    if (!whole()) joints = room.take<double>(cut.splits * args.points);
    if (kMarginals) marginals = room.take<double>(cut.splits * args.points * args.dims);
  }

  VAEFAST_MEMBER bool whole() const { return !kMarginals && cut.splits == 1; }

  VAEFAST_MEMBER void run(int64_t block, Shared& shared) const {
    const TileCut::Block at = cut.block(block);
    const int64_t first = at.tile * kSide, dim = at.chunk * kDims;
    Thread threads[kStates];
    all_threads(threads, [&](int thread, Thread& t) { begin(first, dim, thread, shared, t); });
    for (int64_t index = at.begin; index < at.end; ++index) {
      if (kMarginals && tiles.special.meets(first, index * kSide, kSide)) {
        meet<true>(first, index * kSide, at.chunk, shared, threads);
      } else {
        meet<false>(first, index * kSide, at.chunk, shared, threads);
      }
    }
    if (kMarginals)
      all_threads(threads, [&](int thread, const Thread& t) {
        put_marginals(at.split * tiles.z.count + first, first, dim, thread, t);
      });
    if (at.chunk > 0) return;
    all_threads(threads, [&](int thread, const Thread& t) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        shared.tops[Tile::row(thread) * kEach + i][Tile::col(thread)] = t.top[i];
        shared.sums[Tile::row(thread) * kEach + i][Tile::col(thread)] = t.sum[i];
      }
    });
    all_threads(threads, [&](int thread, const Thread&) {
      if (thread >= kSide || first + thread >= tiles.z.count) return;
      const double log2 = log_sum(shared.tops[thread], shared.sums[thread]);
      if (whole()) return density.set(first + thread, log2);
      joints[at.split * tiles.z.count + first + thread] = log2;
    });
  }

 private:
  VAEFAST_MEMBER void begin(int64_t first, int64_t dim, int thread, Shared& shared,
                            Thread& t) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      t.top[i] = T(-kInf);
      t.sum[i] = T(0);
#pragma unroll
      for (int k = 0; kMarginals && k < kHeld; ++k) {
        t.base[i][k] = kMost;
        t.total[i][k] = T(0);
      }
    }
    // Else they are loaded with the components.
    if (tiles.chunks == 1 || dim > 0) tiles.load_points(first, dim, thread, shared);
  }

  // The block's points and the components from `at` on. The first chunk's block has the joint
  // density too. Its own dimensions are the last to be loaded: the marginals find them there.
  template <bool kWeighted>
  VAEFAST_MEMBER void meet(int64_t first, int64_t at, int64_t chunk, Shared& shared,
                           Thread* threads) const {
    const int64_t dim = chunk * kDims;
    for (int64_t c = chunk > 0 ? chunk : tiles.chunks - 1; c >= chunk; --c) {
      const bool begins = c == tiles.chunks - 1 || chunk > 0;
      all_threads(threads, [&](int thread, Thread& t) {
        if (begins) {
          t.level = T(0);
#pragma unroll
          for (int i = 0; i < kEach; ++i)
#pragma unroll
            for (int j = 0; j < kEach; ++j) t.squares[i][j] = T(0);
        }
        if (tiles.chunks > 1 && chunk == 0) tiles.load_points(first, c * kDims, thread, shared);
        tiles.load_components(at, c * kDims, thread, shared, t.level);
        if (c == chunk) tiles.put_level(at, thread, t.level, shared);
        if (kWeighted) tiles.find_special(first, at, thread, shared);
      });
      all_threads(threads, [&](int thread, Thread& t) {
        if (chunk == 0) tiles.template add_squares<true>(c * kDims, thread, shared, t.squares);
        if (c > chunk) return;
        if (chunk == 0) add_joint<kWeighted>(thread, shared, t);
        if (kMarginals) add_marginals<kWeighted>(dim, thread, shared, t);
      });
    }
  }

  template <bool kWeighted>
  VAEFAST_MEMBER void add_joint(int thread, const Shared& shared, Thread& t) const {
    const int row = Tile::row(thread) * kEach, col = Tile::col(thread) * kEach;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      T values[kEach], high = T(-kInf), sum = T(0);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        values[j] = Tiles::level_of(shared, col + j) - t.squares[i][j];
        high = values[j] > high ? values[j] : high;
      }
      if (high > t.top[i]) {
        t.sum[i] *= exp2(t.top[i] - high);
        t.top[i] = high;
      }
      // -inf - -inf would be NaN; with 0 in its place each term is 2^-inf = 0.
      const T shift = t.top[i] > T(-kInf) ? t.top[i] : T(0);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const T e = exp2(values[j] - shift);
        sum += kWeighted ? e * tiles.weight(shared, row + i, col + j) : e;
      }
      t.sum[i] += sum;
    }
  }

  template <bool kWeighted>
  VAEFAST_MEMBER void add_marginals(int64_t dim, int thread, const Shared& shared,
                                    Thread& t) const {
    const int row = Tile::row(thread) * kEach;
    T sums[kEach][kHeld] = {};
#pragma unroll 1
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (dim + Tiles::dim_of(thread, k) >= tiles.z.dims) continue;
        const int place = Tile::place(Tiles::dim_of(thread, k), g);
        const Vec mean = shared.mean[place], rate = shared.rate[place];
        const Vec z = shared.z[Tile::place(Tiles::dim_of(thread, k), Tile::row(thread))];
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          T squares[kEach], low = kMost;
#pragma unroll
          for (int j = 0; j < kEach; ++j) {
            const T u = (z.v[i] - mean.v[j]) * rate.v[j];
            squares[j] = u * u;
            low = squares[j] < low ? squares[j] : low;
          }
          if (low < t.base[i][k] - T(kSlack)) {
            const T factor = exp2(low - t.base[i][k]);
            t.total[i][k] *= factor;
            sums[i][k] *= factor;
            t.base[i][k] = low;
          }
#pragma unroll
          for (int j = 0; j < kEach; ++j) {
            const T weight =
                kWeighted ? rate.v[j] * tiles.weight(shared, row + i, g * kEach + j) : rate.v[j];
            sums[i][k] = madd(exp2(t.base[i][k] - squares[j]), weight, sums[i][k]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
      for (int k = 0; k < kHeld; ++k) t.total[i][k] += sums[i][k];
  }

  // The logarithm of a sum that a row's threads have parts of.
  VAEFAST_MEMBER static double log_sum(const T (&tops)[kGroups], const T (&sums)[kGroups]) {
    T top = T(-kInf);
    for (int i = 0; i < kGroups; ++i) top = tops[i] > top ? tops[i] : top;
    const double shift = top > T(-kInf) ? static_cast<double>(top) : 0;
    double sum = 0;
    for (int i = 0; i < kGroups; ++i)
      sum += static_cast<double>(sums[i]) * exp2(static_cast<double>(tops[i]) - shift);
    return shift + kLog2E * log(sum);
  }

  VAEFAST_MEMBER void put_marginals(int64_t row, int64_t first, int64_t dim, int thread,
                                    const Thread& t) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int local = Tile::row(thread) * kEach + i;
      if (first + local >= tiles.z.count) continue;
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int64_t d = dim + Tiles::dim_of(thread, k);
        if (d >= tiles.z.dims) continue;
        marginals[(row + local) * tiles.z.dims + d] =
            kLog2E * log(static_cast<double>(t.total[i][k])) - static_cast<double>(t.base[i][k]);
      }
    }
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
