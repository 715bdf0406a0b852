// The maximum mean discrepancy of two samples and its gradients.
//
// A block has a tile of points, its own, and goes through its share of the tiles of other points;
// each pair is met from both sides where both gradients are wanted, so that a block adds to its own
// points alone. Distances are sums of squared differences, not |x|^2 + |y|^2 - 2xy, which would
// cancel for the near points that weigh most. A second launch adds the shares up.
#include "core/pairs.h"
#include "cuda/row_nll.cuh"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// Calls body(thread, state) for each thread of a block, and waits for all of them.
template <class State, class Body>
VAEFAST_FN void all_threads(State* states, const Body& body) {
#if defined(__CUDA_ARCH__)
  body(static_cast<int>(threadIdx.x), states[0]);
  __syncthreads();
#else
  for (int thread = 0; thread < kThreads; ++thread) body(thread, states[thread]);
#endif
}

VAEFAST_FN float inverse_of(float x) {
#if defined(__CUDA_ARCH__)
  // 1 ulp; the division that rounds takes eight instructions more.
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

VAEFAST_FN double inverse_of(double x) { return 1.0 / x; }

// The points whose gradient a block makes, and those they are paired with: first all of their own
// sample, then those of the other, where the gradient or the value has them.
template <class T>
struct Side {
  const T *own = nullptr, *other = nullptr;
  int64_t points = 0, others = 0, tiles = 0, inner = 0;
  int64_t splits = 1, each = 0, chunks = 1;
  bool own_wide = false, other_wide = false, counts_other = false;
  // Of the value; a slope's are twice the second, and four times the first: each pair of one sample
  // is met from both of its points.
  double within = 0, across = 0;
  T* grad = nullptr;
  // [splits, points, dims], or the gradient itself.
  T* parts = nullptr;

  VAEFAST_MEMBER int64_t sums() const { return tiles * splits; }
  VAEFAST_MEMBER int64_t blocks() const { return sums() * chunks; }
};

template <class T>
struct MmdPairs {
  static constexpr int kBlocksPerSm = 2;
  // A thread has kEach x kEach pairs of a tile of kSide x kSide.
  static constexpr int kEach = 16 / sizeof(T), kGroups = 16, kSide = kGroups * kEach;
  static constexpr int kDims = 64, kHeld = kDims / kGroups;

  struct alignas(16) Vec {
    T v[kEach];
  };

  // Points by dimension. Group g of dimension d is at g ^ (d % 8): threads that read one group of
  // several dimensions then meet in no bank. Slopes likewise, by the group of their row.
  struct Shared {
    Vec own[kDims * kGroups], other[kDims * kGroups];
    union {
      Vec slopes[kSide * kGroups];
      double sums[kThreads];
    };
  };

  struct Thread {
    T squared[kEach][kEach], pull[kEach][kHeld], home[kEach][kHeld];
    double value;
  };
#if defined(__CUDA_ARCH__)
  static constexpr int kStates = 1;
#else
  static constexpr int kStates = kThreads;
#endif

  int64_t blocks;
  int64_t dims, dim_chunks;
  Side<T> sides[2];
  double* values;
  bool rbf;
  int scales;
  // The scale, or its inverse for rbf.
  T number[kMaxScales];

  VAEFAST_MEMBER static int place(int d, int group) { return d * kGroups + (group ^ (d & 7)); }

  VAEFAST_MEMBER void load(const T* points, bool wide, int64_t count, int64_t first, int64_t dim,
                           int thread, Vec* to) const {
    const int point = thread % kSide,
              left = static_cast<int>(dims - dim < kDims ? dims - dim : kDims);
    const char* row = reinterpret_cast<const char*>(points + (first + point) * dims + dim);
#pragma unroll 4
    for (int d = thread / kSide * kEach; d < left; d += kThreads / kSide * kEach) {
      uint32_t words[4];
      const int n = first + point < count ? (left - d < kEach ? left - d : kEach) : 0;
      const char* at = row + d * static_cast<int>(sizeof(T));
      load_packed<sizeof(T), kEach>(at, wide && n == kEach, n, words);
#pragma unroll
      for (int j = 0; j < kEach; ++j)
        get_bits(words, j, to[place(d + j, point / kEach)].v[point % kEach]);
    }
  }

  VAEFAST_MEMBER void add_distances(int thread, int64_t dim, const Shared& shared,
                                    Thread& t) const {
    const int col = thread % kGroups, row = thread / kGroups;
    const int left = static_cast<int>(dims - dim < kDims ? dims - dim : kDims);
#pragma unroll 4
    for (int d = 0; d < left; ++d) {
      const Vec a = shared.own[place(d, row)], b = shared.other[place(d, col)];
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

  // Adds one scale's values to a sum and its slopes to those of the pairs.
  template <bool kRbf>
  VAEFAST_MEMBER static void add_scale(T scale, const Thread& t, T (&slope)[kEach][kEach],
                                       T& value) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const T d = t.squared[i][j], near = kRbf ? scale : inverse_of(scale + d);
        const T k = kRbf ? exp_or_zero(-d * scale) : scale * near;
        value += k;
        slope[i][j] = madd(-k, near, slope[i][j]);
      }
    }
  }

  // The kernel's slopes, to shared memory; returns the sum of its values.
  VAEFAST_MEMBER T weigh(int thread, T factor, bool wanted, Shared& shared, const Thread& t) const {
    const int col = thread % kGroups, row = thread / kGroups;
    T slope[kEach][kEach] = {}, value = T(0);
#pragma unroll 1
    for (int s = 0; s < scales; ++s) {
      if (rbf) {
        add_scale<true>(number[s], t, slope, value);
      } else {
        add_scale<false>(number[s], t, slope, value);
      }
    }
    if (!wanted) return value;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      Vec out;
#pragma unroll
      for (int j = 0; j < kEach; ++j) out.v[j] = slope[i][j] * factor;
      shared.slopes[(row * kEach + i) * kGroups + (col ^ (row & 7))] = out;
    }
    return value;
  }

  VAEFAST_MEMBER void pull(int thread, int64_t dim, const Shared& shared, Thread& t) const {
    const int col = thread % kGroups, row = thread / kGroups;
#pragma unroll 1
    for (int g = 0; g < kGroups; ++g) {
      Vec slopes[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        slopes[i] = shared.slopes[(row * kEach + i) * kGroups + (g ^ (row & 7))];
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (dim + k * kGroups >= dims) continue;
        const Vec other = shared.other[place(col + k * kGroups, g)];
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int j = 0; j < kEach; ++j)
            t.pull[i][k] = madd(slopes[i].v[j], t.home[i][k] - other.v[j], t.pull[i][k]);
        }
      }
    }
  }

  VAEFAST_MEMBER void run(int64_t block, Shared& shared) const {
    const bool second = block >= sides[0].blocks();
    const Side<T>& side = sides[second];
    if (second) block -= sides[0].blocks();
    const int64_t unit = quotient(block, side.chunks), chunk = block - unit * side.chunks;
    const int64_t tile = quotient(unit, side.splits), split = unit - tile * side.splits;
    const int64_t first = tile * kSide, dim = chunk * kDims;
    const bool wanted = side.grad != nullptr;
    Thread threads[kStates];
    all_threads(threads, [&](int thread, Thread& t) {
      t.value = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int64_t point = first + thread / kGroups * kEach + i;
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          const int64_t d = dim + thread % kGroups + k * kGroups;
          t.pull[i][k] = T(0);
          t.home[i][k] =
              wanted && point < side.points && d < dims ? side.own[point * dims + d] : T(0);
        }
      }
      if (dim_chunks == 1) load(side.own, side.own_wide, side.points, first, 0, thread, shared.own);
    });
    const int64_t last =
        (split + 1) * side.each < side.inner ? (split + 1) * side.each : side.inner;
    for (int64_t index = split * side.each; index < last; ++index) {
      const bool same = index < side.tiles;
      const T* points = same ? side.own : side.other;
      const bool wide = same ? side.own_wide : side.other_wide;
      const int64_t count = same ? side.points : side.others;
      const int64_t at = (same ? index : index - side.tiles) * kSide;
      meet(side, shared, threads, points, wide, count, first, at, same, dim);
    }
    if (wanted) put(side, threads, split, first, dim);
    if (chunk > 0) return;
    all_threads(threads, [&](int thread, Thread& t) { shared.sums[thread] = t.value; });
    all_threads(threads, [&](int thread, Thread&) {
      if (thread >= kWarp) return;
      for (int w = 1; w < kWarps; ++w) shared.sums[thread] += shared.sums[thread + w * kWarp];
    });
    all_threads(threads, [&](int thread, Thread&) {
      if (thread > 0) return;
      double sum = 0;
      for (int i = 0; i < kWarp; ++i) sum += shared.sums[i];
      values[(second ? sides[0].sums() : 0) + unit] = sum;
    });
  }

  // The block's own points and those of one tile.
  VAEFAST_MEMBER void meet(const Side<T>& side, Shared& shared, Thread* threads, const T* points,
                           bool wide, int64_t count, int64_t first, int64_t at, bool same,
                           int64_t dim) const {
    const bool wanted = side.grad != nullptr;
    const double within = same ? side.within : side.across;
    const T factor = static_cast<T>(same ? 4 * side.within : 2 * side.across);
    for (int64_t c = 0; c < dim_chunks; ++c) {
      all_threads(threads, [&](int thread, Thread& t) {
        if (dim_chunks > 1)
          load(side.own, side.own_wide, side.points, first, c * kDims, thread, shared.own);
        load(points, wide, count, at, c * kDims, thread, shared.other);
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
            const int64_t a = first + thread / kGroups * kEach + i;
            const int64_t b = at + thread % kGroups * kEach + j;
            if (a >= side.points || b >= count || (same && a == b))
              t.squared[i][j] = GammaConstants<T>::infinity;
          }
        }
        const T sum = weigh(thread, factor, wanted, shared, t);
        if (same || side.counts_other) t.value += within * static_cast<double>(sum);
      });
    }
    if (!wanted) return;
    if (dim_chunks > 1)
      all_threads(threads, [&](int thread, Thread&) {
        load(points, wide, count, at, dim, thread, shared.other);
      });
    all_threads(threads, [&](int thread, Thread& t) { pull(thread, dim, shared, t); });
  }

  VAEFAST_MEMBER void put(const Side<T>& side, Thread* threads, int64_t split, int64_t first,
                          int64_t dim) const {
    all_threads(threads, [&](int thread, const Thread& t) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int64_t point = first + thread / kGroups * kEach + i;
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          const int64_t d = dim + thread % kGroups + k * kGroups;
          if (point < side.points && d < dims)
            side.parts[(split * side.points + point) * dims + d] = t.pull[i][k];
        }
      }
    });
  }
};

// Adds the shares up. A unit is a warp: the first has the value, the others 32 elements of a
// gradient each.
template <class T>
struct MmdTotals {
  static constexpr int kSums = 1, kBlocksPerSm = 4;
  using Sum = double;
  Work work;
  Side<T> sides[2];
  int64_t sizes[2], units[2];
  const double* values;
  double constant;
  void* value;

  VAEFAST_MEMBER bool sums_up() const { return true; }

  VAEFAST_MEMBER void finish(int64_t unit, const double* sums) const {
    if (unit == 0) *static_cast<T*>(value) = static_cast<T>(constant + sums[0]);
  }

  VAEFAST_MEMBER void run(int64_t unit, int lane, double* sums) const {
    if (unit == 0) {
      const int64_t count = sides[0].sums() + sides[1].sums();
      for (int64_t i = lane; i < count; i += kWarp) sums[0] += values[i];
      return;
    }
    const bool second = unit > units[0];
    const Side<T>& side = sides[second];
    const int64_t i = (unit - 1 - (second ? units[0] : 0)) * kWarp + lane;
    if (i >= sizes[second]) return;
    T sum = T(0);
    for (int64_t s = 0; s < side.splits; ++s) sum += side.parts[s * sizes[second] + i];
    side.grad[i] = sum;
  }
};

#if defined(__CUDACC__)

template <class Op>
__global__ void __launch_bounds__(kThreads, Op::kBlocksPerSm)
    mmd_kernel(const __grid_constant__ Op op) {
  __shared__ typename Op::Shared shared;
  for (int64_t block = blockIdx.x; block < op.blocks; block += gridDim.x) op.run(block, shared);
}

template <class Op>
void launch_blocks(Op op, const cuda::Place& place) {
  if (op.blocks == 0) return;
  const Current current(place.device);
  constexpr int64_t kMost = 1 << 20;
  void* arguments[] = {&op};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(&mmd_kernel<Op>),
                         dim3(static_cast<unsigned>(op.blocks < kMost ? op.blocks : kMost)),
                         dim3(kThreads), arguments, 0, static_cast<cudaStream_t>(place.stream)),
        "the kernel did not start");
}

#else

template <class Op>
void launch_blocks(const Op& op, const cuda::Place&) {
  typename Op::Shared shared;
  for (int64_t block = 0; block < op.blocks; ++block) op.run(block, shared);
}

#endif

template <class T>
int64_t run(const MmdArgs& args, const cuda::Place* place) {
  using Op = MmdPairs<T>;
  Op op;
  op.dims = args.dims;
  op.dim_chunks = args.dims > Op::kDims ? divide_up(args.dims, Op::kDims) : 1;
  op.rbf = args.rbf;
  op.scales = args.scales;
  for (int s = 0; s < args.scales; ++s)
    op.number[s] = static_cast<T>(args.rbf ? 1 / args.scale[s] : args.scale[s]);
  const T* points[] = {static_cast<const T*>(args.x), static_cast<const T*>(args.y)};
  const int64_t counts[] = {args.x_points, args.y_points};
  const double within[] = {args.factor_xx, args.factor_yy};
  T* const grads[] = {static_cast<T*>(args.grad_x), static_cast<T*>(args.grad_y)};
  const int64_t row = args.dims * static_cast<int64_t>(sizeof(T));
  const auto wide = [&](const T* p) {
    return row % 16 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  };
  const int64_t tiles = divide_up(counts[0], Op::kSide) + divide_up(counts[1], Op::kSide);
  Room room = place != nullptr ? Room(*place) : Room();
  for (int i = 0; i < 2; ++i) {
    Side<T>& side = op.sides[i];
    side.own = points[i];
    side.other = points[1 - i];
    side.points = counts[i];
    side.others = counts[1 - i];
    side.own_wide = wide(side.own);
    side.other_wide = wide(side.other);
    side.within = within[i];
    side.across = args.factor_xy;
    side.grad = grads[i];
    // The pairs of x and y count where x is the one whose side it is.
    side.counts_other = i == 0;
    const bool crosses = side.counts_other || side.grad != nullptr;
    side.tiles = divide_up(side.points, Op::kSide);
    side.inner = crosses ? tiles : side.tiles;
    if (side.grad != nullptr) side.chunks = op.dim_chunks;
    // Some 256 blocks; each split has a copy of the gradient.
    const int64_t wanted = tiles > 0 ? divide_up(256, tiles * op.dim_chunks) : 1;
    side.each = side.inner > 0 ? divide_up(side.inner, wanted) : 1;
    side.splits = side.inner > 0 ? divide_up(side.inner, side.each) : 1;
    side.parts = side.grad;
    if (side.grad != nullptr && side.splits > 1)
      side.parts = room.take<T>(side.splits * side.points * args.dims);
  }
  op.blocks = op.sides[0].blocks() + op.sides[1].blocks();
  op.values = room.take<double>(op.sides[0].sums() + op.sides[1].sums());
  if (place == nullptr) return room.used();
  launch_blocks(op, *place);
  MmdTotals<T> totals;
  totals.values = op.values;
  totals.constant = args.constant;
  totals.value = args.value;
  for (int i = 0; i < 2; ++i) {
    totals.sides[i] = op.sides[i];
    const bool adds = op.sides[i].parts != op.sides[i].grad;
    totals.sizes[i] = adds ? counts[i] * args.dims : 0;
    totals.units[i] = divide_up(totals.sizes[i], kWarp);
  }
  totals.work = {1 + totals.units[0] + totals.units[1], kWarp, kWarp};
  launch(totals, *place);
  return room.used();
}

}  // namespace
}  // namespace VAEFAST_ISA

void cuda::mmd(const MmdArgs& args, const Place& place) {
  if (args.wide) {
    VAEFAST_ISA::run<double>(args, &place);
  } else {
    VAEFAST_ISA::run<float>(args, &place);
  }
}

int64_t cuda::mmd_workspace(const MmdArgs& args) {
  return args.wide ? VAEFAST_ISA::run<double>(args, nullptr)
                   : VAEFAST_ISA::run<float>(args, nullptr);
}

}  // namespace vaefast
