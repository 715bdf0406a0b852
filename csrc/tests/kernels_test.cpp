// Runs the CPU kernels over odd shapes, dtypes and settings from buffers of exactly the right size:
// under ASan and UBSan any step outside shows. Checks float against double, and one thread against
// two.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/dispatch.h"

namespace {

using namespace vaefast;

int failures = 0;

void check(bool good, const char* what, int64_t rows, int64_t cols) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s at [%lld, %lld]\n", what, static_cast<long long>(rows),
              static_cast<long long>(cols));
}

template <class T>
struct Type;
template <>
struct Type<float> {
  static constexpr DType kDType = DType::kF32;
};
template <>
struct Type<double> {
  static constexpr DType kDType = DType::kF64;
};

uint32_t seed = 1;

double random_unit() {
  seed = seed * 1664525u + 1013904223u;
  return (seed >> 8) / 16777216.0;
}

std::vector<double> random_values(int64_t n, double low, double high) {
  std::vector<double> values(static_cast<size_t>(n));
  // Exact in float, so that both types see the same input.
  for (double& v : values) v = static_cast<float>(low + (high - low) * random_unit());
  return values;
}

template <class T>
std::vector<T> as(const std::vector<double>& values) {
  return std::vector<T>(values.begin(), values.end());
}

// The address of no elements: an empty vector may have none, which would read as an absent operand,
// and what is read here AddressSanitizer sees.
template <class T>
T* no_elements() {
  static T* const none = new T[0];
  return none;
}

template <class T>
View dense(const std::vector<T>& values, int64_t rows, int64_t cols) {
  View view;
  view.data = values.empty() ? no_elements<T>() : values.data();
  view.dtype = Type<T>::kDType;
  view.mod = rows > 0 ? rows : 1;
  view.row_stride = cols;
  view.col_stride = 1;
  return view;
}

template <class T>
Output out(std::vector<T>& values) {
  return {values.empty() ? no_elements<T>() : values.data(), Type<T>::kDType};
}

template <class A, class B>
bool close(const std::vector<A>& a, const std::vector<B>& b, double tolerance) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(double(a[i]) - double(b[i])) <= tolerance * (1 + std::fabs(double(b[i])))))
      return false;
  return true;
}

struct Posterior {
  Param param = Param::kLogvar;
  Clamp clamp = Clamp::kNone;
  Reduce reduce = Reduce::kSample;
  int64_t samples = 1, offset = 0;
  bool prior = false, masked = false, per_sample = false;
  // The KL at each sample, and then without the score's gradient.
  bool monte_carlo = false, stopped = false;
};

// Everything that one forward and backward pass gives, one after the other.
template <class T>
std::vector<T> run_sample_kl(const Shape& shape, const Posterior& set, int threads) {
  seed = 7;
  const int64_t n = shape.rows * shape.cols, batch = shape.rows / shape.segments;
  const auto mu = as<T>(random_values(n, -2, 2)), scale = as<T>(random_values(n, 0.1, 1.5));
  const auto prior_mu = as<T>(random_values(n, -1, 1));
  const auto prior_scale = as<T>(random_values(n, 0.2, 1.2));
  const auto weight = as<T>(random_values(n, 0, 2));
  const auto upstream = as<T>(random_values(n * set.samples, -1, 1));
  const auto kl_upstream = as<T>(random_values(n * set.samples, -1, 1));
  std::vector<uint8_t> mask(static_cast<size_t>(n));
  for (uint8_t& m : mask) m = random_unit() < 0.7;
  std::vector<int64_t> state(static_cast<size_t>(2 * (set.per_sample ? batch : 1)) + 2);
  for (size_t i = 0; i < state.size(); ++i) state[i] = static_cast<int64_t>(i % 2 ? 4 * i : 99 + i);

  SampleKlArgs a;
  a.shape = shape;
  a.mu = dense(mu, shape.rows, shape.cols);
  a.scale = dense(scale, shape.rows, shape.cols);
  if (set.prior) {
    a.prior_mu = dense(prior_mu, shape.rows, shape.cols);
    a.prior_scale = dense(prior_scale, shape.rows, shape.cols);
  }
  if (set.masked && !set.monte_carlo) {
    a.weight = dense(weight, shape.rows, shape.cols);
    a.mask = a.weight;
    a.mask.data = mask.empty() ? a.weight.data : mask.data();
    a.mask.dtype = DType::kBool;
  }
  a.state = {state.data(), set.per_sample, set.offset};
  a.param = set.param;
  a.clamp = set.clamp;
  a.low = 0.2;
  a.high = 1.2;
  a.min_std = 0.01;
  a.samples = set.samples;
  a.reduce = set.reduce;
  a.factor = 0.5;
  a.wide = sizeof(T) == sizeof(double);
  a.threads = threads;

  const int64_t width = shape.segments * shape.cols;
  const int64_t kl_size = set.monte_carlo                 ? batch * set.samples
                          : set.reduce == Reduce::kElem   ? n
                          : set.reduce == Reduce::kSample ? batch
                          : set.reduce == Reduce::kDim    ? width
                                                          : 1;
  std::vector<T> z(static_cast<size_t>(n * set.samples)), kl(static_cast<size_t>(kl_size));
  a.z = out(z);
  a.z.nontemporal = set.prior;
  a.kl = out(kl).data;
  set.monte_carlo ? cpu::sample_monte_carlo_kl({a}) : cpu::sample_kl(a);

  std::vector<T> grads[4];
  std::vector<double> sums[2];
  for (auto& g : grads) g.resize(static_cast<size_t>(n));
  a.grad_z = dense(upstream, shape.rows * set.samples, shape.cols);
  a.grad_kl = dense(kl_upstream, shape.rows * (set.monte_carlo ? set.samples : 1), shape.cols);
  a.grad_mu = out(grads[0]);
  a.grad_scale = out(grads[1]);
  if (set.prior) {
    a.grad_prior_mu = out(grads[2]);
    a.grad_prior_scale = out(grads[3]);
    for (Output* g : {&a.grad_mu, &a.grad_scale, &a.grad_prior_mu, &a.grad_prior_scale})
      g->nontemporal = true;
  }
  if (set.prior && !set.monte_carlo) {
    for (auto& s : sums) s.resize(static_cast<size_t>(kPriorBlocks * n));
    a.sum_prior_mu = sums[0].data();
    a.sum_prior_scale = sums[1].data();
    a.prior_mu_size = a.prior_scale_size = n;
  }
  set.monte_carlo ? cpu::sample_monte_carlo_kl_backward({a, set.stopped})
                  : cpu::sample_kl_backward(a);

  std::vector<T> all = z;
  // A block's tiles are the compute type's; the sums over the blocks are not.
  for (const auto& s : sums)
    for (size_t i = 0; i < s.size() / kPriorBlocks; ++i) {
      double total = 0;
      for (size_t block = 0; block < kPriorBlocks; ++block)
        total += s[block * s.size() / kPriorBlocks + i];
      all.push_back(static_cast<T>(total));
    }
  all.insert(all.end(), kl.begin(), kl.end());
  for (const auto& g : grads) all.insert(all.end(), g.begin(), g.end());
  return all;
}

template <class T>
std::vector<T> run_nll(const Shape& shape, int form, Reduce reduce, bool masked, int threads) {
  seed = 11;
  const int64_t n = shape.rows * shape.cols, batch = shape.rows / shape.segments;
  const auto x = as<T>(random_values(n, 0, 1));
  const auto weight = as<T>(random_values(n, 0, 2));
  std::vector<T> params[kMaxParams], grads[kMaxParams];
  NllArgs a;
  a.shape = shape;
  a.form = form;
  a.numbers[0] = 0.7;
  a.numbers[1] = 0.3;
  for (int j = 0; j < kMaxParams; ++j) {
    params[j] = as<T>(random_values(n, 0.1, 0.9));
    grads[j].resize(static_cast<size_t>(n));
    a.params[j] = dense(params[j], shape.rows, shape.cols);
    a.grads[j] = out(grads[j]);
    a.grads[j].nontemporal = masked;
  }
  a.target = dense(x, shape.rows, shape.cols);
  if (masked) a.weight = dense(weight, shape.rows, shape.cols);
  const int64_t state[2] = {5, 3};
  a.state.words = masked ? state : nullptr;
  a.target_rows = shape.rows;
  a.reduce = reduce;
  a.factor = 0.25;
  a.grad_factor = 0.5;
  a.wide = sizeof(T) == sizeof(double);
  a.threads = threads;
  const int64_t size = reduce == Reduce::kElem ? n : reduce == Reduce::kSample ? batch : 1;
  std::vector<T> loss(static_cast<size_t>(size));
  a.loss = out(loss).data;
  cpu::nll(a);
  std::vector<T> all = loss;
  for (const auto& g : grads) all.insert(all.end(), g.begin(), g.end());
  return all;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

void test_posteriors(const Shape& shape) {
  const Reduce reductions[] = {Reduce::kElem, Reduce::kSample, Reduce::kDim, Reduce::kSum};
  int turn = 0;
  for (int param = 0; param < 5; ++param)
    for (int clamp = 0; clamp < 3; ++clamp) {
      Posterior set;
      set.param = static_cast<Param>(param);
      set.clamp = static_cast<Clamp>(clamp);
      set.reduce = reductions[turn % 4];
      set.samples = 1 + turn % 3;
      set.offset = turn % 5;
      set.prior = turn % 2 == 1;
      set.masked = turn % 3 == 2;
      set.per_sample = turn % 4 == 3;
      ++turn;
      for (bool monte_carlo : {false, true}) {
        set.monte_carlo = monte_carlo;
        set.stopped = turn % 4 < 2;
        const auto narrow = run_sample_kl<float>(shape, set, 1);
        check(close(narrow, run_sample_kl<double>(shape, set, 1), 2e-4), "sample_kl", shape.rows,
              shape.cols);
        check(same_bits(narrow, run_sample_kl<float>(shape, set, 2)), "sample_kl on two threads",
              shape.rows, shape.cols);
      }
    }
}

void test_likelihoods(const Shape& shape) {
  const Reduce reductions[] = {Reduce::kElem, Reduce::kSample, Reduce::kSum};
  for (int form = 0; kForms[form] != nullptr; ++form)
    for (int turn = 0; turn < 6; ++turn) {
      const Reduce reduce = reductions[turn % 3];
      const auto narrow = run_nll<float>(shape, form, reduce, turn > 2, 1);
      check(close(narrow, run_nll<double>(shape, form, reduce, turn > 2, 1), 2e-4), kForms[form],
            shape.rows, shape.cols);
      check(same_bits(narrow, run_nll<float>(shape, form, reduce, turn > 2, 2)), kForms[form],
            shape.rows, shape.cols);
    }
}

void test_storage() {
  // Every half goes through float and back unchanged, NaN apart.
  std::vector<uint16_t> halves(65536), back(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    back = halves;
    ScaleArgs a;
    a.shape = {1, 65536, 1};
    a.grad = {back.data(), dtype};
    // By a power of two and back: the values pass through the loaders and are not skipped.
    const float half = 0.5, two = 2;
    a.threads = 1;
    a.upstream.data = &half;
    cpu::scale(a);
    a.upstream.data = &two;
    cpu::scale(a);
    for (size_t i = 0; i < halves.size(); ++i) {
      const uint16_t exponent = dtype == DType::kF16 ? 0x7c00 : 0x7f80;
      const uint16_t mantissa = dtype == DType::kF16 ? 0x03ff : 0x007f;
      const bool nan = (halves[i] & exponent) == exponent && (halves[i] & mantissa) != 0;
      // Subnormals, and what halving makes one of, may lose their last bit.
      const bool small = (halves[i] & exponent) <= (mantissa + 1);
      if (!nan && !small) check(back[i] == halves[i], "a 16-bit value", 1, int64_t(i));
    }
  }
}

// A gradient of no elements may be scaled by an upstream one that has no memory.
void test_scale_of_nothing() {
  const float* const addresses[] = {nullptr, no_elements<float>()};
  for (const Shape& shape : {Shape{0, 4, 1}, Shape{5, 0, 1}, Shape{0, 0, 1}})
    for (const float* upstream : addresses)
      for (DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16}) {
        ScaleArgs a;
        a.shape = shape;
        a.grad = {no_elements<float>(), dtype};
        a.upstream.data = upstream;
        a.threads = 2;
        cpu::scale(a);
      }
}

void test_noise() {
  // A value belongs to its place: a piece of the noise equals that piece of the whole.
  const int64_t state[2] = {123456789, 0};
  std::vector<float> whole(5000), piece(777);
  NoiseArgs a;
  a.shape = {1, 5000, 1};
  a.state.words = state;
  a.threads = 2;
  a.out = out(whole);
  cpu::noise(a);
  for (int64_t offset : {0, 1, 2, 3, 4, 1023}) {
    a.shape = {1, 777, 1};
    a.state.offset = offset;
    a.out = out(piece);
    cpu::noise(a);
    check(std::memcmp(piece.data(), whole.data() + offset, piece.size() * sizeof(float)) == 0,
          "noise at an offset", 1, offset);
  }
}

}  // namespace

int main() {
  const Shape shapes[] = {{0, 4, 1},    {4, 0, 1},    {1, 1, 1},    {5, 7, 1},    {6, 41, 2},
                          {2, 1271, 1}, {130, 20, 1}, {6, 1024, 3}, {1, 4097, 1}, {1025, 1, 1}};
  for (const Shape& shape : shapes) {
    test_posteriors(shape);
    test_likelihoods(shape);
  }
  test_storage();
  test_scale_of_nothing();
  test_noise();
  std::printf(failures == 0 ? "all kernels agree\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
