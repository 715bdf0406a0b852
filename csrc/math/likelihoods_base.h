// What the likelihoods' functors share: see likelihoods.h for what a functor is.
#pragma once

#include "special.h"

namespace vaefast {
namespace VAEFAST_ISA {

// What is known of a count before it is looked at: where most are 0, these are done by themselves,
// at a part of the cost.
enum class Counts { kAny, kZero, kOther };

// The likelihoods that a CPU takes in two loops, `inner` and `outer`, and how many derivatives the
// inner one makes: a vector of one loop over both is as many instructions, or as long a chain of
// them, as the processor looks ahead, so that one vector waits for the other. -1: one loop.
template <class F>
constexpr int kInnerGrads = -1;

// The likelihoods with a form of their own for a GPU, by its special-function unit: `quick`, which
// says in `odd` where it does not serve, for inputs that hardly occur; there `nll` does.
template <class F>
constexpr bool kHasQuick = false;

// low <= x <= high in one comparison, 0 < low: negative numbers, infinities and NaN are outside.
VAEFAST_FN bool between(float x, float low, float high) {
  return to_bits(x) - to_bits(low) <= to_bits(high) - to_bits(low);
}

template <class T>
VAEFAST_FN T sign(T x) {
  const T side = x > T(0) ? T(1) : T(-1);
  return x == T(0) ? T(0) : side * (x == x ? T(1) : x);
}

}  // namespace VAEFAST_ISA
}  // namespace vaefast
