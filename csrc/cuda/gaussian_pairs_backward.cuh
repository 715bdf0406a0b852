// Points against diagonal Gaussians, backward: the gradients.
//
// One launch meets each pair from both sides: a block makes the gradient of its own points in z or
// that of its own components. With g the gradient in a pair's log density, the point's is the sum
// of -2 ln2 g u rate; the component's are those of 2 ln2 g u rate in mu, of ln2 g u^2 - g/2 in
// logvar and of g in the weight's logarithm.
//
// Distances are made once for a tile of pairs, of whatever many dimensions. Up to kDims of these
// have their sums in registers until the block's share is done; of more, each tile adds its own to
// the block's copy in global memory, kDims at a time.
#pragma once

#include "cuda/gaussian_tiles.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

// kMarginals: each dimension's density has its own part of g, `each` times its share. kMany: there
// are more than kDims dimensions.
template <class T, bool kMarginals, bool kMany>
struct GaussianPairsBackward {
  using Tiles = GaussianTiles<T, kMarginals>;
  using Tile = PairTile<T>;
  using Vec = typename Tile::Vec;
  static constexpr int kBlocksPerSm = 2;
  static constexpr int kEach = Tile::kEach, kGroups = Tile::kGroups, kSide = Tile::kSide;
  static constexpr int kDims = Tiles::kDims, kHeld = Tiles::kHeld;
  // The logarithm of the density of a point that there is not.
  static constexpr T kMost = T(1e30);

  struct Shared : Tiles::Shared {
    Vec slopes[kSide * kGroups];
    // Of the points.
    T joint[kSide], factor[kSide];
    Vec each[kGroups];
    // Of the block. Here it takes no registers.
    TileCut::Block at;
  };

  struct Thread {
    T level, squares[kEach][kEach];
    // Points: z and the marginals. Components: mean and rate.
    T home[kEach][kHeld], other[kEach][kHeld];
    // Points: the sums of g u rate. Components: of g u and g u^2, and of g.
    T first[kEach][kHeld], second[kEach][kHeld], zeroth[kEach][kMarginals ? kHeld : 1];
  };

  Tiles tiles;
  TileCut points, components;
  int64_t blocks = 0;
  const double* joint;
  Points<T> marginals;
  const T* upstream;
  // Of z, mu, logvar and the weights' logarithms.
  Copied<T> grads[4];

  GaussianPairsBackward(const GaussianMixtureArgs& args, Room& room)
      : tiles(args),
        joint(args.joint),
        marginals(args.marginals, args.points, args.dims),
        upstream(static_cast<const T*>(args.upstream)) {
    points.inner = components.tiles = tiles.component_tiles();
    components.inner = points.tiles = tiles.point_tiles();
    const int64_t each = tiles_each({&points, &components}, wave_of<GaussianPairsBackward>());
    points.share(each);
    components.share(each);
    blocks = points.blocks() + components.blocks();
    const int64_t size = args.components * args.dims;
    grads[0] = Copied<T>(args.grad_z, args.points * args.dims, points, room);
    grads[1] = Copied<T>(args.grad_mu, size, components, room);
    grads[2] = Copied<T>(args.grad_logvar, size, components, room);
    grads[3] = Copied<T>(args.grad_log_weights, args.components, components, room);
  }

  VAEFAST_MEMBER void run(int64_t block, Shared& shared) const {
    if (block < points.blocks()) {
      run_side<true>(points.block(block), shared);
    } else {
      run_side<false>(components.block(block - points.blocks()), shared);
    }
  }

 private:
  VAEFAST_MEMBER int chunks() const { return kMany ? static_cast<int>(tiles.chunks) : 1; }

  template <bool kPoints>
  VAEFAST_MEMBER void run_side(const TileCut::Block& at, Shared& shared) const {
    Thread threads[kStates];
    all_threads(threads, [&](int thread, Thread& t) {
      const int64_t first = at.tile * kSide;
      if (thread == 0) shared.at = at;
      if (!kMany) begin<kPoints>(first, 0, thread, t);
      if (kPoints) load_rows(first, thread, shared);
    });
    for (int index = 0; shared.at.begin + index < shared.at.end; ++index) {
      if (kMarginals && tiles.special.meets(first_of<kPoints, true>(shared, index),
                                            first_of<kPoints, false>(shared, index), kSide)) {
        meet<kPoints, true>(index, shared, threads);
      } else {
        meet<kPoints, false>(index, shared, threads);
      }
    }
    // A share of no tiles has put nothing yet, and no other what comes once.
    const bool empty = shared.at.begin >= shared.at.end;
    if (kMany && !empty && (!kMarginals || shared.at.split > 0)) return;
    all_threads(threads, [&](int thread, Thread& t) {
      for (int c = 0; c < chunks(); ++c) {
        if (kMany)
          begin<kPoints>(shared.at.tile * kSide, static_cast<int64_t>(c) * kDims, thread, t);
        put<kPoints, true>(shared.at, c, !kMany || empty, thread, t);
      }
    });
  }

  // The first point or component of the pairs that a block meets in its `index`-th tile.
  template <bool kPoints, bool kOfPoints>
  VAEFAST_MEMBER static int64_t first_of(const Shared& shared, int index) {
    return (kPoints == kOfPoints ? shared.at.tile : shared.at.begin + index) * kSide;
  }

  template <bool kPoints>
  VAEFAST_MEMBER void begin(int64_t first, int64_t dim, int thread, Thread& t) const {
    thread = made_anew(thread);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t own = first + Tile::row(thread) * kEach + i;
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int64_t d = dim + Tiles::dim_of(thread, k);
        const bool here = own < (kPoints ? tiles.z.count : tiles.mu.count) && d < tiles.z.dims;
        const int64_t index = own * tiles.z.dims + d;
        if (kPoints) {
          t.home[i][k] = here ? tiles.z.data[index] : T(0);
          t.other[i][k] = kMarginals && here ? marginals.data[index] : kMost;
        } else {
          t.home[i][k] = here ? tiles.mu.data[index] : T(0);
          t.other[i][k] = here ? rate_of(tiles.logvar.data[index]) : T(0);
        }
        t.first[i][k] = t.second[i][k] = T(0);
        t.zeroth[i][kMarginals ? k : 0] = T(0);
      }
    }
  }

  // What the gradient of the points' values makes of their pairs' shares.
  VAEFAST_MEMBER void load_rows(int64_t first, int thread, Shared& shared) const {
    if (thread >= kSide) return;
    const int64_t i = first + thread, count = tiles.z.count;
    const bool here = i < count;
    const Divisor<T> by(here ? joint[i] : 0);
    shared.joint[thread] = here ? by.shift : kMost;
    if constexpr (kMarginals) {
      // Of mi, tc and dim_kl.
      const T tc = here ? upstream[count + i] : T(0);
      shared.factor[thread] = here ? (tc - upstream[i]) * by.rest : T(0);
      shared.each[thread / kEach].v[thread % kEach] = here ? upstream[2 * count + i] - tc : T(0);
    } else {
      shared.factor[thread] = here ? upstream[i] * by.rest : T(0);
    }
  }

  // The block's tile and the `index`-th of those that it meets. The first dimensions are the last
  // to be loaded: their gradient finds them there.
  template <bool kPoints, bool kWeighted>
  VAEFAST_MEMBER void meet(int index, Shared& shared, Thread* threads) const {
    // The marginals take the place of the components' means.
    const bool reload = index == 0 || kMany || (kMarginals && !kPoints);
    for (int c = chunks() - 1; c >= 0; --c) {
      all_threads(threads, [&](int thread, Thread& t) {
        const int64_t point = first_of<kPoints, true>(shared, index);
        const int64_t component = first_of<kPoints, false>(shared, index);
        if (c == chunks() - 1) {
          t.level = T(0);
#pragma unroll
          for (int i = 0; i < kEach; ++i)
#pragma unroll
            for (int j = 0; j < kEach; ++j) t.squares[i][j] = T(0);
          if (!kPoints) load_rows(point, thread, shared);
          if (kWeighted) tiles.find_special(point, component, thread, shared);
        }
        if (!kPoints || reload)
          tiles.load_points(point, static_cast<int64_t>(c) * kDims, thread, shared);
        if (!kPoints && !reload) return;
        tiles.load_components(component, static_cast<int64_t>(c) * kDims, thread, shared, t.level);
        if (c == 0) tiles.put_level(component, thread, t.level, shared);
      });
      all_threads(threads, [&](int thread, Thread& t) {
        tiles.template add_squares<kPoints>(static_cast<int64_t>(c) * kDims, thread, shared,
                                            t.squares);
        if (c == 0) weigh<kPoints, kWeighted>(thread, shared, t);
      });
    }
    for (int c = 0; c < chunks(); ++c) {
      if (c > 0 || (kMarginals && !kPoints))
        all_threads(threads, [&](int thread, Thread&) {
          const int64_t point = first_of<kPoints, true>(shared, index);
          const int64_t component = first_of<kPoints, false>(shared, index);
          const int64_t dim = static_cast<int64_t>(c) * kDims;
          T unused = T(0);
          if (c > 0 && kPoints) tiles.load_components(component, dim, thread, shared, unused);
          if (c > 0 && !kPoints) tiles.load_points(point, dim, thread, shared);
          if (kMarginals && !kPoints) load_marginals(point, dim, thread, shared);
        });
      all_threads(threads, [&](int thread, Thread& t) {
        const int64_t dim = static_cast<int64_t>(c) * kDims;
        if (kMany) begin<kPoints>(first_of<kPoints, kPoints>(shared, index), dim, thread, t);
        if (kPoints) {
          add_point_gradients<kWeighted>(dim, thread, shared, t);
        } else {
          add_component_gradients<kWeighted>(dim, thread, shared, t);
        }
        if (kMany) put<kPoints, false>(shared.at, c, index == 0, thread, t);
      });
    }
  }

  VAEFAST_MEMBER void load_marginals(int64_t first, int64_t dim, int thread, Shared& shared) const {
    Tile::template read<kDims, Tiles::kLoads>(
        marginals, first, dim, thread, [&](int d, int point, T value) {
          Tile::set(shared.mean, d, point, first + point < marginals.count ? value : kMost);
        });
  }

  // The joint density's part of g, to shared memory.
  template <bool kPoints, bool kWeighted>
  VAEFAST_MEMBER void weigh(int thread, Shared& shared, const Thread& t) const {
    const int row = Tile::row(thread) * kEach, col = Tile::col(thread) * kEach;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      Vec out;
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int p = kPoints ? row + i : col + j, c = kPoints ? col + j : row + i;
        const T log2 = Tiles::level_of(shared, c) - t.squares[i][j] - shared.joint[p];
        out.v[j] = shared.factor[p] * exp2(log2);
        if (kWeighted) out.v[j] *= tiles.weight(shared, p, c);
      }
      shared.slopes[Tile::pair_place(Tile::row(thread), i, Tile::col(thread))] = out;
    }
  }

  VAEFAST_MEMBER static void read_slopes(const Shared& shared, int thread, int group,
                                         Vec (&slopes)[kEach]) {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      slopes[i] = shared.slopes[Tile::pair_place(Tile::row(thread), i, group)];
  }

  // The share of a pair in a dimension's density, where that has its own part of g.
  template <bool kWeighted>
  VAEFAST_MEMBER T share(const Shared& shared, T u, T rate, T marginal, int point,
                         int component) const {
    const T e = exp2(madd(-u, u, -marginal)) * rate;
    return kWeighted ? e * tiles.weight(shared, point, component) : e;
  }

  template <bool kWeighted>
  VAEFAST_MEMBER void add_point_gradients(int64_t dim, int thread, const Shared& shared,
                                          Thread& t) const {
    const int row = Tile::row(thread);
#pragma unroll 1
    for (int g = 0; g < kGroups; ++g) {
      Vec slopes[kEach];
      read_slopes(shared, thread, g, slopes);
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (dim + Tiles::dim_of(thread, k) >= tiles.z.dims) continue;
        const int place = Tile::place(Tiles::dim_of(thread, k), g);
        const Vec mean = shared.mean[place], rate = shared.rate[place];
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int j = 0; j < kEach; ++j) {
            const T u = (t.home[i][k] - mean.v[j]) * rate.v[j];
            T slope = slopes[i].v[j];
            if constexpr (kMarginals)
              slope = madd(share<kWeighted>(shared, u, rate.v[j], t.other[i][k], row * kEach + i,
                                            g * kEach + j),
                           shared.each[row].v[i], slope);
            t.first[i][k] = madd(slope * u, rate.v[j], t.first[i][k]);
          }
        }
      }
    }
  }

  template <bool kWeighted>
  VAEFAST_MEMBER void add_component_gradients(int64_t dim, int thread, const Shared& shared,
                                              Thread& t) const {
    const int row = Tile::row(thread);
#pragma unroll 1
    for (int g = 0; g < kGroups; ++g) {
      Vec slopes[kEach];
      read_slopes(shared, thread, g, slopes);
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; !kMarginals && j < kEach; ++j) t.zeroth[i][0] += slopes[i].v[j];
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (dim + Tiles::dim_of(thread, k) >= tiles.z.dims) continue;
        const int place = Tile::place(Tiles::dim_of(thread, k), g);
        const Vec z = shared.z[place];
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int j = 0; j < kEach; ++j) {
            const T u = (z.v[j] - t.home[i][k]) * t.other[i][k];
            T slope = slopes[i].v[j];
            if constexpr (kMarginals) {
              slope = madd(share<kWeighted>(shared, u, t.other[i][k], shared.mean[place].v[j],
                                            g * kEach + j, row * kEach + i),
                           shared.each[g].v[j], slope);
              t.zeroth[i][k] += slope;
            }
            const T moment = slope * u;
            t.first[i][k] += moment;
            t.second[i][k] = madd(moment, u, t.second[i][k]);
          }
        }
      }
    }
  }

  // A thread's sums in the dimensions of a chunk; `fresh`: the first that its share has of them.
  // kLast: log q(z|x) and log p(z), which concern a point and its own component alone, come too.
  template <bool kPoints, bool kLast>
  VAEFAST_MEMBER void put(const TileCut::Block& at, int chunk, bool fresh, int thread,
                          const Thread& t) const {
    thread = made_anew(thread);
    const bool once = kMarginals && kLast && at.split == 0;
    if (kPoints) {
      put_points(at, chunk, fresh, once, thread, t);
    } else {
      put_components(at, chunk, fresh, once, thread, t);
    }
  }

  VAEFAST_MEMBER void put_points(const TileCut::Block& at, int chunk, bool fresh, bool once,
                                 int thread, const Thread& t) const {
    const int64_t dims = tiles.z.dims, count = tiles.z.count;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t point = at.tile * kSide + Tile::row(thread) * kEach + i;
      if (point >= count) continue;
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int64_t d = static_cast<int64_t>(chunk) * kDims + Tiles::dim_of(thread, k);
        if (d >= dims) continue;
        T grad = T(-2 * kLn2) * t.first[i][k];
        if (once) {
          T mu_slope, logvar_slope;
          own_slopes(point, d, t.home[i][k], mu_slope, logvar_slope);
          grad += madd(upstream[2 * count + point], t.home[i][k], -mu_slope);
        }
        grads[0].put(at.split, point * dims + d, grad, fresh);
      }
    }
  }

  VAEFAST_MEMBER void put_components(const TileCut::Block& at, int chunk, bool fresh, bool once,
                                     int thread, const Thread& t) const {
    const int64_t dims = tiles.z.dims;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t own = at.tile * kSide + Tile::row(thread) * kEach + i;
      if (own >= tiles.mu.count) continue;
      if (!kMarginals && chunk == 0 && Tile::col(thread) == 0)
        grads[3].put(at.split, own, t.zeroth[i][0], fresh);
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int64_t d = static_cast<int64_t>(chunk) * kDims + Tiles::dim_of(thread, k);
        if (d >= dims) continue;
        T mu_slope = T(0), logvar_slope = T(0);
        const int64_t point = own - tiles.special.first;
        if (once && point >= 0 && point < tiles.z.count)
          own_slopes(point, d, tiles.z.data[point * dims + d], mu_slope, logvar_slope);
        grads[1].put(at.split, own * dims + d,
                     madd(T(2 * kLn2) * t.first[i][k], t.other[i][k], mu_slope), fresh);
        grads[2].put(at.split, own * dims + d,
                     madd(T(kLn2), t.second[i][k],
                          madd(T(-0.5), t.zeroth[i][kMarginals ? k : 0], logvar_slope)),
                     fresh);
      }
    }
  }

  // The gradients of a point's log q(z|x) in a dimension of mu and logvar.
  VAEFAST_MEMBER void own_slopes(int64_t point, int64_t d, T z, T& mu_slope,
                                 T& logvar_slope) const {
    const int64_t own = (tiles.special.first + point) * tiles.z.dims + d;
    const T root = whitening_root(tiles.logvar.data[own]);
    const T near = (z - tiles.mu.data[own]) * root * root;
    mu_slope = upstream[point] * (near * root * root);
    logvar_slope = T(0.5) * upstream[point] * madd(near, near, T(-1));
  }
};

// Queues the sums of the shares' copies.
void add_up(const Copied<float> (&grads)[4], const cuda::Place& place);
void add_up(const Copied<double> (&grads)[4], const cuda::Place& place);

template <class Op>
int64_t run_backward_of(const GaussianMixtureArgs& args, const cuda::Place* place) {
  Room room = place != nullptr ? Room(*place) : Room();
  const Op op(args, room);
  if (place == nullptr) return room.used();
  launch_blocks(op, *place);
  add_up(op.grads, *place);
  return room.used();
}

// Queues a backward call, or counts the bytes that it takes.
template <class T, bool kMarginals>
int64_t run_backward(const GaussianMixtureArgs& args, const cuda::Place* place) {
  if (args.dims > GaussianTiles<T, kMarginals>::kDims)
    return run_backward_of<GaussianPairsBackward<T, kMarginals, true>>(args, place);
  return run_backward_of<GaussianPairsBackward<T, kMarginals, false>>(args, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
