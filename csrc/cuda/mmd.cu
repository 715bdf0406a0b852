// The maximum mean discrepancy of two samples and its gradients.
//
// Each pair is met from both sides where both gradients are wanted, so that a block adds to its own
// points alone. Distances are sums of squared differences, not |x|^2 + |y|^2 - 2xy, which would
// cancel for the near points that weigh most, but where MmdProducts knows that nothing is lost.
#include "cuda/mmd_products.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// In float64, by differences.
template <class T>
struct MmdPairs {
  using Tile = PairTile<T>;
  using Vec = typename Tile::Vec;
  static constexpr int kBlocksPerSm = 2;
  static constexpr int kEach = Tile::kEach, kGroups = Tile::kGroups, kSide = Tile::kSide;
  static constexpr int kDims = 64, kHeld = kDims / kGroups;

  struct Shared {
    Vec own[kDims * kGroups], other[kDims * kGroups];
    Vec slopes[kSide * kGroups];
    // Each thread's own sum of values, for which there is no register.
    double values[kThreads];
  };

  struct Thread {
    T squared[kEach][kEach], gradient[kEach][kHeld], home[kEach][kHeld];
  };
  int64_t blocks, dims, dim_chunks;
  Side<T> sides[2];
  double* values;
  MmdKernel<T> kernel;

  VAEFAST_MEMBER static void load(const Points<T>& points, int64_t first, int64_t dim, int thread,
                                  Vec* to) {
    Tile::template read<kDims, 4>(points, first, dim, thread, [&](int d, int point, T value) {
      Tile::set(to, d, point, value);
    });
  }

  VAEFAST_MEMBER void add_distances(int thread, int64_t dim, const Shared& shared,
                                    Thread& t) const {
    const int col = Tile::col(thread), row = Tile::row(thread);
    const int left = static_cast<int>(dims - dim < kDims ? dims - dim : kDims);
#pragma unroll 4
    for (int d = 0; d < left; ++d) {
      const Vec a = shared.own[Tile::place(d, row)], b = shared.other[Tile::place(d, col)];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          const T gap = a.v[i] - b.v[j];
          t.squared[i][j] = madd(gap, gap, t.squared[i][j]);
        }
      }
    }
  }

  // The kernel's slopes, to shared memory; returns the sum of its values.
  VAEFAST_MEMBER T weigh(int thread, T factor, bool wanted, Shared& shared, const Thread& t) const {
    const int col = Tile::col(thread), row = Tile::row(thread);
    T slope[kEach][kEach];
    const T value = kernel.weigh(t.squared, slope);
    if (!wanted) return value;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      Vec out;
#pragma unroll
      for (int j = 0; j < kEach; ++j) out.v[j] = slope[i][j] * factor;
      shared.slopes[Tile::pair_place(row, i, col)] = out;
    }
    return value;
  }

  VAEFAST_MEMBER void add_gradients(int thread, int64_t dim, const Shared& shared,
                                    Thread& t) const {
    const int col = Tile::col(thread), row = Tile::row(thread);
#pragma unroll 1
    for (int g = 0; g < kGroups; ++g) {
      Vec slopes[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) slopes[i] = shared.slopes[Tile::pair_place(row, i, g)];
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (dim + k * kGroups >= dims) continue;
        const Vec other = shared.other[Tile::place(col + k * kGroups, g)];
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int j = 0; j < kEach; ++j)
            t.gradient[i][k] = madd(slopes[i].v[j], t.home[i][k] - other.v[j], t.gradient[i][k]);
        }
      }
    }
  }

  VAEFAST_MEMBER void run(int64_t block, Shared& shared) const {
    const bool second = block >= sides[0].cut.blocks();
    const Side<T>& side = sides[second];
    const TileCut::Block at = side.cut.block(second ? block - sides[0].cut.blocks() : block);
    const int64_t first = at.tile * kSide, dim = at.chunk * kDims;
    Thread threads[kStates];
    all_threads(threads, [&](int thread, Thread& t) {
      shared.values[thread] = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int64_t point = first + Tile::row(thread) * kEach + i;
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          const int64_t d = dim + Tile::col(thread) + k * kGroups;
          const bool here = side.wanted() && point < side.own.count && d < dims;
          t.gradient[i][k] = T(0);
          t.home[i][k] = here ? side.own.data[point * dims + d] : T(0);
        }
      }
      if (dim_chunks == 1) load(side.own, first, 0, thread, shared.own);
    });
    for (int64_t index = at.begin; index < at.end; ++index) {
      const bool same = index < side.within_tiles;
      const Points<T> points = same ? side.own : side.other;
      meet(side, shared, threads, points, first, (same ? index : index - side.within_tiles) * kSide,
           same, dim);
    }
    if (side.wanted()) put(side, threads, at.split, first, dim);
    if (at.chunk > 0) return;
    all_threads(threads, [&](int thread, Thread&) {
      if (thread >= kWarp) return;
      for (int w = 1; w < kWarps; ++w) shared.values[thread] += shared.values[thread + w * kWarp];
    });
    all_threads(threads, [&](int thread, Thread&) {
      if (thread > 0) return;
      double sum = 0;
      for (int i = 0; i < kWarp; ++i) sum += shared.values[i];
      values[(second ? sides[0].cut.units() : 0) + at.tile * side.cut.splits + at.split] = sum;
    });
  }

  // The block's own points and those of one tile.
  VAEFAST_MEMBER void meet(const Side<T>& side, Shared& shared, Thread* threads,
                           const Points<T>& points, int64_t first, int64_t at, bool same,
                           int64_t dim) const {
    const double within = same ? side.within : side.across;
    const T factor = static_cast<T>(same ? 4 * side.within : 2 * side.across);
    for (int64_t c = 0; c < dim_chunks; ++c) {
      all_threads(threads, [&](int thread, Thread& t) {
        if (dim_chunks > 1) load(side.own, first, c * kDims, thread, shared.own);
        load(points, at, c * kDims, thread, shared.other);
        if (c > 0) return;
#pragma unroll
        for (int i = 0; i < kEach; ++i)
#pragma unroll
          for (int j = 0; j < kEach; ++j) t.squared[i][j] = T(0);
      });
      all_threads(threads, [&](int thread, Thread& t) {
        add_distances(thread, c * kDims, shared, t);
        if (c < dim_chunks - 1) return;
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int j = 0; j < kEach; ++j) {
            // A pair that there is not is infinitely far apart.
            const int64_t a = first + Tile::row(thread) * kEach + i;
            const int64_t b = at + Tile::col(thread) * kEach + j;
            if (a >= side.own.count || b >= points.count || (same && a == b))
              t.squared[i][j] = GammaConstants<T>::infinity;
          }
        }
        const T sum = weigh(thread, factor, side.wanted(), shared, t);
        if (same || side.counts_other) shared.values[thread] += within * static_cast<double>(sum);
      });
    }
    if (!side.wanted()) return;
    if (dim_chunks > 1)
      all_threads(threads,
                  [&](int thread, Thread&) { load(points, at, dim, thread, shared.other); });
    all_threads(threads, [&](int thread, Thread& t) { add_gradients(thread, dim, shared, t); });
  }

  VAEFAST_MEMBER void put(const Side<T>& side, Thread* threads, int64_t split, int64_t first,
                          int64_t dim) const {
    all_threads(threads, [&](int thread, const Thread& t) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int64_t point = first + Tile::row(thread) * kEach + i;
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          const int64_t d = dim + Tile::col(thread) + k * kGroups;
          if (point < side.own.count && d < dims)
            side.grad.set(split, point * dims + d, t.gradient[i][k]);
        }
      }
    });
  }
};

template <class T, class Op>
int64_t run(const MmdArgs& args, const cuda::Place* place) {
  Op op;
  op.dims = args.dims;
  op.dim_chunks = args.dims > Op::kDims ? divide_up(args.dims, Op::kDims) : 1;
  op.kernel = MmdKernel<T>(args);
  if constexpr (sizeof(T) == 4) op.set_limit(args);
  const Points<T> points[] = {{args.x, args.x_points, args.dims},
                              {args.y, args.y_points, args.dims}};
  const double within[] = {args.factor_xx, args.factor_yy};
  void* const grads[] = {args.grad_x, args.grad_y};
  const int64_t tiles = divide_up(args.x_points, Op::kSide) + divide_up(args.y_points, Op::kSide);
  for (int i = 0; i < 2; ++i) {
    Side<T>& side = op.sides[i];
    side.own = points[i];
    side.other = points[1 - i];
    side.within = within[i];
    side.across = args.factor_xy;
    // The pairs of x and y count where x is the one whose side it is.
    side.counts_other = i == 0;
    side.within_tiles = divide_up(side.own.count, Op::kSide);
    side.cut.tiles = side.within_tiles;
    side.cut.inner = side.counts_other || grads[i] != nullptr ? tiles : side.within_tiles;
    if (grads[i] != nullptr) side.cut.chunks = op.dim_chunks;
  }
  Room room = place != nullptr ? Room(*place) : Room();
  const int64_t each = tiles_each({&op.sides[0].cut, &op.sides[1].cut}, wave_of<Op>());
  MmdTotals<T> totals;
  for (int i = 0; i < 2; ++i) {
    Side<T>& side = op.sides[i];
    side.cut.share(each);
    side.grad = Copied<T>(grads[i], side.own.count * args.dims, side.cut, room);
    totals.grads[i] = side.grad;
  }
  op.blocks = op.sides[0].cut.blocks() + op.sides[1].cut.blocks();
  totals.count = op.sides[0].cut.units() + op.sides[1].cut.units();
  op.values = room.take<double>(totals.count);
  if (place == nullptr) return room.used();
  launch_blocks(op, *place);
  totals.values = op.values;
  totals.constant = args.constant;
  totals.value = args.value;
  totals.work = {1 + totals.grads[0].units() + totals.grads[1].units(), kWarp, kWarp};
  launch(totals, *place);
  return room.used();
}

int64_t run(const MmdArgs& args, const cuda::Place* place) {
  return args.wide ? run<double, MmdPairs<double>>(args, place)
                   : run<float, MmdProducts>(args, place);
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::mmd(const MmdArgs& args, const Place& place) { VAEFAST_ISA::run(args, &place); }

int64_t cuda::mmd_workspace(const MmdArgs& args) { return VAEFAST_ISA::run(args, nullptr); }

}  // namespace vaefast
