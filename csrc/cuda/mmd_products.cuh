// The maximum mean discrepancy's pairs in float32, as products on the tensor cores where that is as
// good as differences.
//
// |x - y|^2 = |x|^2 + |y|^2 - 2xy loses what |x|^2 is off by, and near points weigh most. So a
// block sees its tiles from the middle c of its own points, which distances do not change, and
// takes products where no |x - c|^2 of either tile is above kProducts times the kernel's narrowest
// scale C: what cancels is then far below what the kernel tells apart. Elsewhere, and where
// something is not a number, it takes differences. (So does the CPU, for all tiles at once.)
//
// With R^2 = kProducts C, q the power of two with R <= 2^11 q < 2R, u = 2^-24, D <= kDims:
// - x - c rounds: 8 u R^2 in a squared distance.
// - x = a + b, a the nearest multiple of q, which is a TF32, |b| <= q/2. Sums of a a' are multiples
//   of q^2 below 2^24 q^2: no tensor core rounds them, in whatever order it adds.
// - xx' = aa' + ab' + bx', where b, b' and x' are cut to TF32: per dimension that is off by
//   (|x| + |x'|) q 2^-11 at most, so are the sums by 16 sqrt(D) u R^2. As b has any sign, random
//   errors are near 3 u R^2. The sums of ab' + bx' are below sqrt(D) 2^-10 R^2, and cut D/2 times
//   where five addends meet (mma.cuh): 3 u R^2 for 64 dimensions.
// - |x|^2 in sums of 16, added up, rounds 18 times; the three terms of a distance 8 u R^2.
// So a squared distance is off by (8 + 2 (16 sqrt(D) + 3) + 36 + 8) u R^2 at most, for 64
// dimensions 3e-4 C, if every error is the largest and all point one way. By random ones (Higham
// and Mary 2019, "A new approach to probabilistic rounding error analysis") it is some 10 u R^2 =
// 1e-5 C for points at the limit, and 3e-6 C for normal ones under the default scales, whose |x|^2
// is near 5 C. A scale's value is off by that over it, and the mean over pairs by far less, as
// signs differ. A gradient's error is u times the sum of |slope| R, as it is for differences of
// points that far apart: of points in narrow groups far from c, whose gradients cancel, it is more
// than by differences.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/mmd.cuh"

namespace vaefast {
namespace VAEFAST_ISA {

struct MmdProducts {
  static constexpr int kBlocksPerSm = 2;
  static constexpr int kSide = 64, kDims = 64;
  // The largest squared distance from the middle, in the narrowest scale: csrc/cpu/mmd_samples.h.
  static constexpr double kProducts = 16;
  // Of a point in shared memory: lanes that read the same dimensions of four points, or four
  // dimensions of two, meet in no bank.
  static constexpr int kPitch = kDims + 8;
  // A warp has 16 rows and kCols columns of the pairs: lanes' rows row and row + 8, columns
  // 8 n + first and 8 n + second. Of a gradient a lane has 4 dimensions in each 16.
  static constexpr int kCols = 32, kGroups = kCols / 8, kParts = kDims / 16;
  static constexpr int kHalf = kThreads / 2;

  struct Shared {
    alignas(16) float own[kSide * kPitch];
    union {
      alignas(16) float other[kSide * kPitch];
      // Of dimensions, by a quarter of the own points.
      float quarters[4][kDims];
      // The second half of the threads' share of the gradient.
      float shares[8 * kParts][kHalf];
    };
    alignas(16) float middle[kDims];
    float own_norm[kSide], other_norm[kSide];
    // Each thread's own, for which there are no registers: the sum of values; and by the rows row
    // and row + 8 those of slopes whose gradients lack the point itself.
    double value[kThreads];
    float slopes[2][kThreads];
  };

  // Where a thread is.
  struct Lane {
    int thread, place, row, col, first, second;
    // Of the right operand's column.
    int point;

    // Made anew where it is used: what is made of it would stay in registers otherwise, and spill
    // others.
    static __device__ __forceinline__ Lane here() {
      int thread = static_cast<int>(threadIdx.x);
#if defined(__CUDA_ARCH__)
      asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
#endif
      return Lane(thread);
    }

    __device__ __forceinline__ explicit Lane(int t) : thread(t) {
      const int warp = t / kWarp, lane = t % kWarp, group = lane / 4;
      place = lane % 4;
      row = warp % 4 * 16 + group;
      col = warp / 4 * kCols;
      // Columns 2 place and 2 place + 1 of a product, in an order in which neither the points of
      // a distance nor those of a gradient meet in a bank.
      first = col + place;
      second = col + 4 + (place ^ 2);
      point = col + (group % 2 ? 4 + (group / 2 ^ 2) : group / 2);
    }
  };

  struct Pairs {
    // By a group of 8 columns: (row, first), (row, second), (row + 8, first), (row + 8, second).
    float v[kGroups][4];
  };

  int64_t blocks, dims, dim_chunks;
  Side<float> sides[2];
  double* values;
  MmdKernel<float> kernel;
  // The largest squared distance from the middle for each dimension, or less than nothing where
  // no product is taken; and what rounds to a multiple of q where it is added and taken away.
  float limit, shift;

  void set_limit(const MmdArgs& args) {
    double least = kInf;
    for (int s = 0; s < args.scales; ++s) least = args.scale[s] < least ? args.scale[s] : least;
    limit = -1;
    shift = 0;
    // Beyond these squares of q, or of norms, are not normal numbers.
    if (!(least > 1e-24 && least < 1e24)) return;
    const double each = kProducts * least / static_cast<double>(dims);
    limit = static_cast<float>(each);
    const double radius = std::sqrt(each * static_cast<double>(dims < kDims ? dims : kDims));
    shift = static_cast<float>(1.5 * std::exp2(23 + std::ceil(std::log2(radius)) - 11));
  }

  VAEFAST_MEMBER static int left_of(int64_t dims, int64_t dim) {
    return static_cast<int>(dims - dim < kDims ? dims - dim : kDims);
  }

  // ---- points to shared memory, four threads to one, each with 4 dimensions in every 16

  struct Part {
    uint32_t words[kParts][4];
  };

  static __device__ __forceinline__ void read(const Points<float>& points, int tile, int64_t dim,
                                              int thread, Part& part) {
    const int64_t point = int64_t{tile} * kSide + thread / 4;
    const int left = point < points.count ? left_of(points.dims, dim) : 0;
    const int first = thread % 4 * 4;
    const char* row =
        reinterpret_cast<const char*>(points.data + point * points.dims + dim + first);
    if (points.wide) {
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
#pragma unroll
        for (int i = 0; i < 4; ++i) part.words[p][i] = 0;
        if (16 * p + first < left) load_words<16>(row + 64 * p, part.words[p]);
      }
    } else {
#pragma unroll
      for (int p = 0; p < kParts; ++p)
        load_each<4, 4>(row + 64 * p, left - 16 * p - first, part.words[p]);
    }
  }

  static __device__ __forceinline__ void put(float* to, const float (&four)[4]) {
    struct alignas(16) Four {
      float v[4];
    };
    *reinterpret_cast<Four*>(to) = {{four[0], four[1], four[2], four[3]}};
  }

  static __device__ __forceinline__ void get(const float* from, float (&four)[4]) {
    struct alignas(16) Four {
      float v[4];
    };
    const Four read = *reinterpret_cast<const Four*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = read.v[i];
  }

  static __device__ __forceinline__ void get(const float* from, float (&two)[2]) {
    struct alignas(8) Two {
      float v[2];
    };
    const Two read = *reinterpret_cast<const Two*>(from);
    two[0] = read.v[0];
    two[1] = read.v[1];
  }

  // Of a lane's dimensions of a gradient.
  static __device__ __forceinline__ void get_two_twos(const float* from, float (&four)[4]) {
    float near[2], far[2];
    get(from, near);
    get(from + 8, far);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      four[i] = near[i];
      four[2 + i] = far[i];
    }
  }

  static __device__ __forceinline__ void load(const Points<float>& points, int tile, int64_t dim,
                                              float* to) {
    const int thread = Lane::here().thread;
    Part part;
    read(points, tile, dim, thread, part);
    const int left = left_of(points.dims, dim);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      float four[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) four[i] = as_float(part.words[p][i]);
      if (16 * p < left) put(to + thread / 4 * kPitch + 16 * p + thread % 4 * 4, four);
    }
  }

  // As `load`, seen from the middle, with squared norms; whether this thread's point is too far.
  __device__ __forceinline__ bool load_centred(const Points<float>& points, int tile, int64_t dim,
                                               Shared& shared) const {
    const int thread = Lane::here().thread;
    Part part;
    read(points, tile, dim, thread, part);
    const int left = left_of(points.dims, dim);
    const bool here = int64_t{tile} * kSide + thread / 4 < points.count;
    float norm = 0.0f;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (16 * p >= left) continue;
      const int d = 16 * p + thread % 4 * 4;
      float four[4];
      get(shared.middle + d, four);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        four[i] = as_float(part.words[p][i]) - four[i];
        norm = madd(four[i], four[i], norm);
      }
      put(shared.other + thread / 4 * kPitch + d, four);
    }
    norm = sum_lanes(norm, 4);
    // A point that there is not is never far.
    if (!here) norm = 0.0f;
    if (thread % 4 == 0) shared.other_norm[thread / 4] = norm;
    return !(norm <= limit * static_cast<float>(left));
  }

  // The own points as they are, their middle, and squared norms from there; whether none is too
  // far for products. Behind a barrier, and ends with one.
  __device__ __forceinline__ bool take_own(const Points<float>& own, int tile, int64_t dim,
                                           Shared& shared) const {
    const int thread = Lane::here().thread;
    load(own, tile, dim, shared.own);
    __syncthreads();
    const int left = left_of(dims, dim), d = thread % kDims, quarter = thread / kDims;
    float sum = 0.0f;
    if (d < left) {
      for (int i = 0; i < kSide / 4; ++i)
        sum += shared.own[(quarter * (kSide / 4) + i) * kPitch + d];
    }
    shared.quarters[quarter][d] = sum;
    __syncthreads();
    if (thread < kDims) {
      const int64_t rest = own.count - int64_t{tile} * kSide, count = rest < kSide ? rest : kSide;
      const float total = (shared.quarters[0][d] + shared.quarters[1][d]) +
                          (shared.quarters[2][d] + shared.quarters[3][d]);
      shared.middle[d] = total / static_cast<float>(count);
    }
    __syncthreads();
    const bool here = int64_t{tile} * kSide + thread / 4 < own.count;
    float norm = 0.0f;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (16 * p >= left) continue;
      const int at = 16 * p + thread % 4 * 4;
      float four[4], middle[4];
      get(shared.own + thread / 4 * kPitch + at, four);
      get(shared.middle + at, middle);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = four[i] - middle[i];
        norm = madd(x, x, norm);
      }
    }
    norm = sum_lanes(norm, 4);
    // A point that there is not is never far.
    if (!here) norm = 0.0f;
    if (thread % 4 == 0) shared.own_norm[thread / 4] = norm;
    return !__syncthreads_or(!(norm <= limit * static_cast<float>(left)));
  }

  // ---- distances

  // x = high + low, the first a multiple of q.
  __device__ __forceinline__ void split(float x, float& high, float& low) const {
    high = (x + shift) - shift;
    low = x - high;
  }

  __device__ __forceinline__ void add_products(int left, const Shared& shared,
                                               Pairs& squared) const {
    const Lane lane = Lane::here();
    Sums16x8 main[kGroups] = {}, rest[kGroups] = {};
#pragma unroll 1
    for (int d = 2 * lane.place; d < left + 2 * lane.place; d += 8) {
      float middle[2];
      get(shared.middle + d, middle);
      Tf32Left high, low;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float own[2];
        get(shared.own + (lane.row + 8 * r) * kPitch + d, own);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float a, b;
          split(own[i] - middle[i], a, b);
          high.v[r + 2 * i] = to_bits(a);
          low.v[r + 2 * i] = to_bits(b);
        }
      }
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        float other[2];
        get(shared.other + (lane.point + 8 * n) * kPitch + d, other);
        Tf32Right a, b, whole;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float top, bottom;
          split(other[i], top, bottom);
          a.v[i] = to_bits(top);
          b.v[i] = to_bits(bottom);
          whole.v[i] = to_bits(other[i]);
        }
        multiply_add(low, whole, rest[n]);
        multiply_add(high, b, rest[n]);
        multiply_add(high, a, main[n]);
      }
    }
    const float above = shared.own_norm[lane.row], below = shared.own_norm[lane.row + 8];
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      const float norms[2] = {shared.other_norm[lane.first + 8 * n],
                              shared.other_norm[lane.second + 8 * n]};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float both = (i < 2 ? above : below) + norms[i % 2];
        const float d = madd(-2.0f, main[n].v[i] + rest[n].v[i], both);
        squared.v[n][i] += d > 0.0f ? d : 0.0f;
      }
    }
  }

  static __device__ __forceinline__ void add_differences(int left, const Shared& shared,
                                                         Pairs& squared) {
    const Lane lane = Lane::here();
#pragma unroll 1
    for (int d = 0; d < left; d += 4) {
      float above[4], below[4];
      get(shared.own + lane.row * kPitch + d, above);
      get(shared.own + (lane.row + 8) * kPitch + d, below);
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float other[4];
          get(shared.other + ((j ? lane.second : lane.first) + 8 * n) * kPitch + d, other);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float a = above[i] - other[i], b = below[i] - other[i];
            squared.v[n][j] = madd(a, a, squared.v[n][j]);
            squared.v[n][2 + j] = madd(b, b, squared.v[n][2 + j]);
          }
        }
      }
    }
  }

  // ---- gradients: sum_j slope_ij (x_i - y_j)

  struct Gradient {
    // By rows row and row + 8; dimensions 16 p + 2 place + i % 2 + 8 (i / 2).
    float v[kParts][2][4];
  };

  // Leaves the points themselves out, to which a sum of slopes belongs.
  static __device__ __forceinline__ void gradient_by_products(int left, const Pairs& slopes,
                                                              Shared& shared, Gradient& gradient) {
    const Lane lane = Lane::here();
    Tf32Left high[kGroups], low[kGroups];
    float sums[2] = {};
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float slope = slopes.v[n][i], top = cut_tf32(nearest_tf32(slope));
        // Rows change fastest in an operand, columns in a sum.
        high[n].v[i % 2 * 2 + i / 2] = to_bits(top);
        low[n].v[i % 2 * 2 + i / 2] = to_bits(slope - top);
        sums[i / 2] += slope;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) shared.slopes[r][lane.thread] += sums[r];
    const int group = lane.thread % kWarp / 4;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (16 * p >= left) continue;
      // Apart, as what is cut of a sum is of its largest addend.
      Sums16x8 main[2] = {}, rest[2] = {};
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        Tf32Right a[2], b[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int column = (j ? lane.second : lane.first) + 8 * n;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float other = shared.other[column * kPitch + 16 * p + 8 * i + group];
            const float top = cut_tf32(to_bits(other));
            a[i].v[j] = to_bits(top);
            b[i].v[j] = to_bits(other - top);
          }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_add(low[n], a[i], rest[i]);
          multiply_add(high[n], b[i], rest[i]);
          multiply_add(high[n], a[i], main[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          gradient.v[p][r][i] -= main[i / 2].v[2 * r + i % 2] + rest[i / 2].v[2 * r + i % 2];
    }
  }

  static __device__ __forceinline__ void gradient_by_differences(int left, const Pairs& slopes,
                                                                 const Shared& shared,
                                                                 Gradient& gradient) {
    const Lane lane = Lane::here();
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      if (16 * p >= left) continue;
      const int d = 16 * p + 2 * lane.place;
      float home[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        get_two_twos(shared.own + (lane.row + 8 * r) * kPitch + d, home[r]);
      // The columns of the three other lanes of these rows too.
#pragma unroll 1
      for (int away = 0; away < 4; ++away) {
        const int first = lane.col + (lane.place ^ away),
                  second = lane.col + 4 + (lane.place ^ away ^ 2);
#pragma unroll
        for (int n = 0; n < kGroups; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float other[4], slope[2];
            get_two_twos(shared.other + ((j ? second : first) + 8 * n) * kPitch + d, other);
#pragma unroll
            for (int r = 0; r < 2; ++r)
              slope[r] = __shfl_xor_sync(0xffffffffu, slopes.v[n][2 * r + j], away);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
#pragma unroll
              for (int i = 0; i < 4; ++i)
                gradient.v[p][r][i] = madd(slope[r], home[r][i] - other[i], gradient.v[p][r][i]);
            }
          }
        }
      }
    }
  }

  // ---- a block

  // A block's points, its tiles, and its dimensions.
  struct Place {
    const Side<float>& side;
    int tile, split, chunk, begin, end;
  };

  // Made anew where it is used, as a Lane is.
  __device__ __forceinline__ Place place_of(int64_t block) const {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+l"(block));
#endif
    const bool second = block >= sides[0].cut.blocks();
    const Side<float>& side = sides[second];
    const TileCut::Block at = side.cut.block(second ? block - sides[0].cut.blocks() : block);
    return {side,
            static_cast<int>(at.tile),
            static_cast<int>(at.split),
            static_cast<int>(at.chunk),
            static_cast<int>(at.begin),
            static_cast<int>(at.end)};
  }

  __device__ __forceinline__ void run(int64_t block, Shared& shared) const {
    Gradient gradient = {};
    go_through(place_of(block), shared, gradient);
    const Place at = place_of(block);
    if (at.side.wanted()) put_gradient(at, shared, gradient);
    if (at.chunk > 0) return;
    __syncthreads();
    const int thread = Lane::here().thread;
    if (thread >= kWarp) return;
    double value = shared.value[thread];
    for (int w = 1; w < kWarps; ++w) value += shared.value[thread + w * kWarp];
    value = sum_lanes(value, kWarp);
    if (thread > 0) return;
    const int64_t before = &at.side == &sides[0] ? 0 : sides[0].cut.units();
    values[before + at.tile * at.side.cut.splits + at.split] = value;
  }

  __device__ __forceinline__ void go_through(const Place& at, Shared& shared,
                                             Gradient& gradient) const {
    const Side<float>& side = at.side;
    {
      const int thread = Lane::here().thread;
      shared.value[thread] = 0;
      shared.slopes[0][thread] = shared.slopes[1][thread] = 0.0f;
    }
    const int chunks = static_cast<int>(dim_chunks);
    const int within = static_cast<int>(side.within_tiles);
    bool near = chunks == 1 && take_own(side.own, at.tile, 0, shared);
#pragma unroll 1
    for (int index = at.begin; index < at.end; ++index) {
      const bool same = index < within;
      const Points<float>& points = same ? side.own : side.other;
      const int tile = same ? index : index - within;
      Pairs squared = {};
      // The block's own dimensions come last, and stay for the gradient.
      bool products = false;
#pragma unroll 1
      for (int c = 1; c <= chunks; ++c) {
        const int64_t from =
            int64_t{at.chunk + c < chunks ? at.chunk + c : at.chunk + c - chunks} * kDims;
        // Nobody reads the last tile any more.
        __syncthreads();
        if (chunks > 1) near = take_own(side.own, at.tile, from, shared);
        products = near && !__syncthreads_or(load_centred(points, tile, from, shared));
        if (products) {
          add_products(left_of(dims, from), shared, squared);
          continue;
        }
        load(points, tile, from, shared.other);
        __syncthreads();
        add_differences(left_of(dims, from), shared, squared);
      }
      leave_out(side.own.count - int64_t{at.tile} * kSide, points.count - int64_t{tile} * kSide,
                same && tile == at.tile, squared);
      Pairs slopes;
      const float sum = kernel.weigh(squared.v, slopes.v);
      if (same || side.counts_other)
        shared.value[Lane::here().thread] +=
            (same ? side.within : side.across) * static_cast<double>(sum);
      if (!side.wanted()) continue;
      const float factor = static_cast<float>(same ? 4 * side.within : 2 * side.across);
#pragma unroll
      for (int n = 0; n < kGroups; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) slopes.v[n][i] *= factor;
      const int left = left_of(dims, int64_t{at.chunk} * kDims);
      if (products) {
        gradient_by_products(left, slopes, shared, gradient);
      } else {
        gradient_by_differences(left, slopes, shared, gradient);
      }
    }
  }

  // A pair that there is not is infinitely far apart. rows, cols: what is left of the points.
  static __device__ __forceinline__ void leave_out(int64_t rows, int64_t cols, bool same,
                                                   Pairs& squared) {
    if (rows >= kSide && cols >= kSide && !same) return;
    const Lane lane = Lane::here();
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int a = lane.row + i / 2 * 8, b = 8 * n + (i % 2 ? lane.second : lane.first);
        if (a >= rows || b >= cols || (same && a == b)) squared.v[n][i] = kInfF;
      }
    }
  }

  // The halves of the threads have the same rows and dimensions, and other columns.
  __device__ __forceinline__ void put_gradient(const Place& at, Shared& shared,
                                               Gradient& gradient) const {
    const Lane lane = Lane::here();
    const int mine = lane.thread % kHalf;
    __syncthreads();
    if (lane.thread >= kHalf) {
#pragma unroll
      for (int p = 0; p < kParts; ++p)
#pragma unroll
        for (int i = 0; i < 8; ++i) shared.shares[8 * p + i][mine] = gradient.v[p][i / 4][i % 4];
    }
    __syncthreads();
    if (lane.thread >= kHalf) return;
    const int64_t dim = int64_t{at.chunk} * kDims;
    const int left = left_of(dims, dim);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float slopes = sum_lanes(shared.slopes[r][mine] + shared.slopes[r][mine + kHalf], 4);
      const int64_t point = int64_t{at.tile} * kSide + lane.row + 8 * r;
      if (point >= at.side.own.count) continue;
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int d = 16 * p + 2 * lane.place + i % 2 + i / 2 * 8;
          if (d >= left) continue;
          const float home = shared.own[(lane.row + 8 * r) * kPitch + d] - shared.middle[d];
          const float sum = gradient.v[p][r][i] + shared.shares[8 * p + 4 * r + i][mine];
          // Where no tile took products, the middle may be anything.
          const float grad = slopes != 0.0f ? madd(slopes, home, sum) : sum;
          at.side.grad.set(at.split, point * dims + dim + d, grad);
        }
      }
    }
  }
};

}  // namespace VAEFAST_ISA
}  // namespace vaefast
