// Mixtures of discretised logistics, in the packed layout of PixelCNN++: a lane has some of a
// position's components, works out each of their bins once, and keeps the derivatives until all
// lanes know what share each component has.
#include "cuda/row_nll.cuh"
#include "math/likelihoods_pixels.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

// kEach: components that a lane has registers for; 0: their bins are worked out again.
template <class T, int kChannels, int kEach>
struct LogisticMixture {
  static constexpr int kSums = 1, kBlocksPerSm = sizeof(T) == 8 ? 1 : 2;
  static constexpr bool kPatches = false, kAcrossWarps = false;
  // A component's parameters: its logit, and by channel the mean, the log-scale, and of three
  // channels a coefficient.
  static constexpr int kGroups = kChannels > 1 ? 3 : 2, kParams = 1 + kGroups * kChannels;
  using Sum = double;
  // Of the logits and of logit - loss.
  using Found = Merge<T, T, 2, 2>;
  struct Component {
    T logit, loss, slopes[kParams - 1];
  };
  struct Held {
    Component components[kEach > 0 ? kEach : 1];
  };

  Work work;
  RowNllArgs args;
  T a, b, low, bin, top, half_bin, log_bin, least;
  int64_t mixtures;
  Total loss;

  LogisticMixture(const RowNllArgs& given, int lanes)
      : args(given),
        a(T(given.numbers[0])),
        b(T(given.numbers[1])),
        low(T(given.numbers[2])),
        bin(T(given.numbers[3])),
        top(T(given.numbers[4])),
        half_bin(T(0.5 * given.numbers[3])),
        log_bin(T(log(given.numbers[3]))),
        least(T(given.numbers[5])),
        mixtures(static_cast<int64_t>(given.numbers[6])) {
    const bool blocks = given.reduce == Reduce::kSum;
    work = {given.rows * given.inner, lanes, blocks ? kThreads : lanes};
    loss = position_total(given, work, 1);
  }

  VAEFAST_MEMBER bool sums_up() const { return true; }
  VAEFAST_MEMBER void finish(int64_t index, const double* sums) const { loss.add(index, sums[0]); }

  struct Position {
    int64_t place, step, grad_step;
    const char* params;
    char* grad;
    // Pixels in the units of the means, and their levels.
    T x[kChannels], level[kChannels];
  };

  VAEFAST_MEMBER Position enter(int64_t unit) const {
    Position p;
    const int64_t row = args.inner == 1 ? unit : quotient(unit, args.inner);
    const int64_t at = unit - row * args.inner, own = remainder(row, args.target_rows);
    p.place = own * args.inner + at;
    p.params = params_at<T>(args, row, 0, at);
    p.step = args.class_stride * size_of(args.dtype);
    p.grad_step = args.inner * size_of(args.grad.dtype);
    p.grad = static_cast<char*>(args.grad.data) +
             (row * args.classes * args.inner + at) * size_of(args.grad.dtype);
    const int64_t size = size_of(args.target_dtype);
    const char* pixels =
        static_cast<const char*>(args.target) + (own * kChannels * args.inner + at) * size;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const T x = load_one<T>(args.target_dtype, pixels + c * args.inner * size);
      p.level[c] = level_of(x, a, b, top);
      p.x[c] = madd(p.level[c], bin, low);
    }
    return p;
  }

  // Parameter `group` of component m.
  VAEFAST_MEMBER T param(const Position& p, int group, int64_t m) const {
    return load_one<T>(args.dtype, p.params + (group * mixtures + m) * p.step);
  }

  // The loss under component m and its derivatives, in the order of the groups.
  VAEFAST_MEMBER Component component(const Position& p, int64_t m) const {
    Component k;
    T raw[kParams];
#pragma unroll
    for (int g = 0; g < kParams; ++g) raw[g] = param(p, g, m);
    k.logit = raw[0];
    k.loss = T(0);
    // Of channel 1 on channel 0, of 2 on 0, of 2 on 1.
    T coefficient[kChannels > 1 ? 3 : 1], slope[kChannels > 1 ? 3 : 1];
    if constexpr (kChannels > 1) {
      T rest;
#pragma unroll
      for (int j = 0; j < 3; ++j)
        coefficient[j] = tanh_and_slope(raw[1 + kGroups * j + 2], rest, slope[j]);
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      T loc = raw[1 + kGroups * c];
      if constexpr (kChannels > 1) {
        if (c == 1) loc += coefficient[0] * p.x[0];
        if (c == 2) loc += coefficient[1] * p.x[0] + coefficient[2] * p.x[kChannels - 2];
      }
      const T scale = raw[1 + kGroups * c + 1];
      const bool narrow = scale < least;
      T gl = T(0), gs = T(0);
      k.loss += logistic_bin_nll<true>(p.x[c] - loc, half_bin, log_bin, narrow ? least : scale,
                                       p.level[c] <= T(0), p.level[c] >= top, gl, gs);
      k.slopes[kGroups * c] = gl;
      k.slopes[kGroups * c + 1] = narrow ? T(0) : gs;
    }
    if constexpr (kChannels > 1) {
      const T by[3] = {k.slopes[kGroups] * p.x[0], k.slopes[2 * kGroups] * p.x[0],
                       k.slopes[2 * kGroups] * p.x[kChannels - 2]};
#pragma unroll
      for (int j = 0; j < 3; ++j) k.slopes[kGroups * j + 2] = by[j] * slope[j];
    }
    return k;
  }

  VAEFAST_MEMBER static void count(T value, int i, Found& found) {
    if (value > found.tops[i]) {
      found.sums[i] *= lowered(found.tops[i], value);
      found.tops[i] = value;
    }
    found.sums[i] += exp_or_zero(value - level_under(found.tops[i]));
  }

  VAEFAST_MEMBER void read(int64_t unit, int lane, Held& held, Found& found) const {
    const Position p = enter(unit);
    if (!kept(args, p.place)) return;
    if constexpr (kEach > 0) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int64_t m = lane + i * work.lanes;
        if (m >= mixtures) continue;
        held.components[i] = component(p, m);
        count(held.components[i].logit, 0, found);
        count(held.components[i].logit - held.components[i].loss, 1, found);
      }
    } else {
      for (int64_t m = lane; m < mixtures; m += work.lanes) {
        const Component k = component(p, m);
        count(k.logit, 0, found);
        count(k.logit - k.loss, 1, found);
      }
    }
  }

  VAEFAST_MEMBER void write(int64_t unit, int lane, const Held& held, const Found& found,
                            double* sums) const {
    const Position p = enter(unit);
    const bool keep = kept(args, p.place);
    const T weight = weight_of<T>(args, p.place);
    if (lane == 0 && keep) {
      const T value = (found.tops[0] - found.tops[1]) + log(found.sums[0] / found.sums[1]);
      sums[0] = static_cast<double>(value) * static_cast<double>(weight);
    }
    if (args.grad.data == nullptr) return;
    const T factor = weight * static_cast<T>(args.grad_factor);
    const T prior = factor / found.sums[0], joint = factor / found.sums[1];
    if constexpr (kEach > 0) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int64_t m = lane + i * work.lanes;
        if (m < mixtures) put_slopes(p, m, keep, held.components[i], found, prior, joint);
      }
    } else {
      for (int64_t m = lane; m < mixtures; m += work.lanes)
        put_slopes(p, m, keep, keep ? component(p, m) : Component(), found, prior, joint);
    }
  }

  VAEFAST_MEMBER void put_slopes(const Position& p, int64_t m, bool keep, const Component& k,
                                 const Found& found, T prior, T joint) const {
    const T q = exp_or_zero((k.logit - k.loss) - level_under(found.tops[1])) * joint;
    const T own = exp_or_zero(k.logit - level_under(found.tops[0])) * prior - q;
    char* to = p.grad + m * p.grad_step;
    store_one(args.grad.dtype, to, keep ? own : T(0));
    // A component without a share may have a derivative that is not finite.
#pragma unroll
    for (int g = 1; g < kParams; ++g) {
      const T slope = k.slopes[g - 1] * q;
      store_one(args.grad.dtype, to + g * mixtures * p.grad_step, keep && q != T(0) ? slope : T(0));
    }
  }
};

template <class T, int kChannels, int kEach>
int64_t run(const RowNllArgs& args, int lanes, const cuda::Place* place) {
  LogisticMixture<T, kChannels, kEach> op(args, lanes);
  Room room = place != nullptr ? Room(*place) : Room();
  room.take(op.loss);
  if (place != nullptr) {
    launch(op, *place);
    add_up(&op.loss, nullptr, *place);
  }
  return room.used();
}

template <class T, int kChannels>
int64_t run(const RowNllArgs& args, const cuda::Place* place) {
  // Three components of ten idle on two lanes' places of twelve; one, on six of sixteen.
  constexpr int kEach = sizeof(T) == 8 ? 1 : 3;
  const int64_t lanes = power_of_two(divide_up(static_cast<int64_t>(args.numbers[6]), kEach));
  if (lanes > kWarp) return run<T, kChannels, 0>(args, kWarp, place);
  return run<T, kChannels, kEach>(args, static_cast<int>(lanes), place);
}

}  // namespace

int64_t mixture_rows(const RowNllArgs& args, const cuda::Place* place) {
  if (args.numbers[7] > 1)
    return args.wide ? run<double, 3>(args, place) : run<float, 3>(args, place);
  return args.wide ? run<double, 1>(args, place) : run<float, 1>(args, place);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
