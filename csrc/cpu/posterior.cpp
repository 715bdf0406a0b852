// Scale parameters transformed, compiled once for all kernels of a posterior.
#include "cpu/posterior.h"

namespace vaefast {
namespace VAEFAST_ISA {
namespace {

template <Param kParam, Clamp kClamp, class T>
void transform(const SampleKlArgs& args, const T* raw, int64_t n, ScaleBuffers<T>& b) {
  const ScaleNumbers<T> numbers(args);
  for (int64_t i = 0; i < n; ++i) {
    T s = raw[i], clamp_grad = T(1);
    if constexpr (kClamp == Clamp::kHard) s = clamp_hard(s, numbers.low, numbers.high, clamp_grad);
    if constexpr (kClamp == Clamp::kSoft) s = clamp_soft(s, numbers.low, numbers.high, clamp_grad);
    const Scale<T> scale = scale_of<kParam>(s, clamp_grad, numbers);
    b.logvar[i] = scale.logvar;
    b.std[i] = scale.std;
    b.slope[i] = scale.slope;
  }
}

template <Param kParam, class T>
void transform_clamped(const SampleKlArgs& args, Clamp clamp, const T* raw, int64_t n,
                       ScaleBuffers<T>& b) {
  switch (clamp) {
    case Clamp::kNone:
      return transform<kParam, Clamp::kNone>(args, raw, n, b);
    case Clamp::kHard:
      return transform<kParam, Clamp::kHard>(args, raw, n, b);
    case Clamp::kSoft:
      return transform<kParam, Clamp::kSoft>(args, raw, n, b);
  }
}

}  // namespace

template <class T>
ScaleTile<T> load_scale(const SampleKlArgs& args, const View& view, Clamp clamp, const Tile& tile,
                        bool want_std, ScaleBuffers<T>& b) {
  const T* raw = load(view, tile, b.raw);
  const int64_t n = tile.size();
  if (args.param == Param::kLogvar && clamp == Clamp::kNone) {
    if (want_std)
      for (int64_t i = 0; i < n; ++i) b.std[i] = exp(T(0.5) * raw[i]);
    return {raw, b.std, nullptr};
  }
  switch (args.param) {
    case Param::kLogvar:
      transform_clamped<Param::kLogvar>(args, clamp, raw, n, b);
      break;
    case Param::kLogStd:
      transform_clamped<Param::kLogStd>(args, clamp, raw, n, b);
      break;
    case Param::kStd:
      transform_clamped<Param::kStd>(args, clamp, raw, n, b);
      break;
    case Param::kVar:
      transform_clamped<Param::kVar>(args, clamp, raw, n, b);
      break;
    case Param::kSoftplus:
      transform_clamped<Param::kSoftplus>(args, clamp, raw, n, b);
      break;
  }
  return {b.logvar, b.std, b.slope};
}

template ScaleTile<float> load_scale(const SampleKlArgs&, const View&, Clamp, const Tile&, bool,
                                     ScaleBuffers<float>&);
template ScaleTile<double> load_scale(const SampleKlArgs&, const View&, Clamp, const Tile&, bool,
                                      ScaleBuffers<double>&);

}  // namespace VAEFAST_ISA
}  // namespace vaefast
