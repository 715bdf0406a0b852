// As kernels_test.cpp, for the likelihoods with a class dimension and for targets in CSR: buffers
// of exactly the right size, float against double, one thread against two, and the gradient where
// the parameters lie against one of its own.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/dispatch.h"

namespace {

using namespace vaefast;

int failures = 0;
uint32_t seed = 1;

void check(bool good, const char* what, int64_t rows, int64_t classes, int64_t inner) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s at [%lld, %lld, %lld]\n", what, static_cast<long long>(rows),
              static_cast<long long>(classes), static_cast<long long>(inner));
}

double random_unit() {
  seed = seed * 1664525u + 1013904223u;
  return (seed >> 8) / 16777216.0;
}

struct Case {
  const char* name;
  RowForm form;
  int64_t rows, classes, inner, segments, copies;
  int channels;
  bool over;
};

// A CSR matrix of counts, and the same one dense.
struct Counts {
  std::vector<int64_t> starts{0}, columns;
  std::vector<double> values, dense;

  Counts(int64_t rows, int64_t classes) : dense(static_cast<size_t>(rows * classes)) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < classes; ++c) {
        if (random_unit() > 0.1) continue;
        columns.push_back(c);
        values.push_back(std::floor(1 + 4 * random_unit()));
        dense[static_cast<size_t>(r * classes + c)] = values.back();
      }
      starts.push_back(static_cast<int64_t>(columns.size()));
    }
    // An empty vector may have no address.
    columns.reserve(1);
    values.reserve(1);
  }
};

template <class T>
std::vector<T> run(const Case& set, int threads, bool in_place) {
  seed = 3;
  const int64_t target_rows = set.rows / set.copies, positions = set.rows * set.inner;
  const DType dtype = sizeof(T) == 8 ? DType::kF64 : DType::kF32;
  std::vector<T> params(static_cast<size_t>(positions * set.classes));
  for (T& v : params) v = static_cast<T>(static_cast<float>(4 * random_unit() - 2));
  std::vector<T> grad(in_place ? 0 : params.size());
  const Counts counts(target_rows,
                      set.form == RowForm::kMultinomial || set.form == RowForm::kMultinomialSparse
                          ? set.classes
                          : 0);
  std::vector<int64_t> indices;
  std::vector<uint8_t> pixels, mask;
  std::vector<T> dense(counts.dense.begin(), counts.dense.end()), weight;
  for (int64_t i = 0; i < target_rows * set.inner; ++i) {
    indices.push_back(static_cast<int64_t>(static_cast<double>(set.classes) * random_unit()));
    mask.push_back(random_unit() < 0.8);
    weight.push_back(static_cast<T>(static_cast<float>(2 * random_unit())));
  }
  for (int64_t i = 0; i < target_rows * set.inner * set.channels; ++i)
    pixels.push_back(static_cast<uint8_t>(256 * random_unit()));

  RowNllArgs a;
  a.rows = set.rows;
  a.classes = set.classes;
  a.inner = set.inner;
  a.segments = set.segments;
  a.form = set.form;
  a.numbers[0] = 1;
  a.params = params.data();
  a.dtype = dtype;
  a.row_stride = set.classes * set.inner;
  a.class_stride = set.inner;
  a.target_rows = target_rows;
  switch (set.form) {
    case RowForm::kCategorical:
      a.target = indices.data();
      a.target_dtype = DType::kI64;
      break;
    case RowForm::kMultinomial:
      a.target = dense.data();
      a.target_dtype = dtype;
      break;
    case RowForm::kMultinomialSparse:
      a.target = counts.values.data();
      a.target_dtype = DType::kF64;
      a.row_starts = counts.starts.data();
      a.columns = counts.columns.data();
      break;
    default: {
      const double numbers[] = {1, 0, -1, 2.0 / 255, 255, -7};
      std::memcpy(a.numbers, numbers, sizeof numbers);
      a.numbers[6] = static_cast<double>(set.classes / (set.channels == 3 ? 10 : 3));
      a.numbers[7] = set.channels;
      a.target = pixels.data();
      a.target_dtype = DType::kU8;
    }
  }
  if (set.over) {
    a.mask = mask.data();
    a.weight = weight.data();
  }
  a.reduce = set.over ? Reduce::kElem : set.segments > 1 ? Reduce::kSample : Reduce::kSum;
  a.factor = 0.25;
  a.grad_factor = 0.5;
  a.wide = sizeof(T) == 8;
  a.threads = threads;
  const int64_t size = set.over ? positions : set.segments > 1 ? set.rows / set.segments : 1;
  std::vector<T> loss(static_cast<size_t>(size));
  a.loss = loss.data();
  a.grad.data = in_place ? params.data() : grad.data();
  a.grad.dtype = dtype;
  if (set.form == RowForm::kLogisticMixture) {
    cpu::logistic_mixture_nll(a);
  } else {
    cpu::softmax_nll(a);
  }
  const std::vector<T>& made = in_place ? params : grad;
  loss.insert(loss.end(), made.begin(), made.end());
  return loss;
}

bool close(const std::vector<float>& a, const std::vector<double>& b) {
  double largest = 1e-30;
  for (const double v : b) largest = std::fmax(largest, std::fabs(v));
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(a[i] - b[i]) <= 1e-3 * std::fabs(b[i]) + 1e-5 * largest)) return false;
  return a.size() == b.size();
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

void test_rows(const Case& set) {
  const auto narrow = run<float>(set, 1, false);
  check(close(narrow, run<double>(set, 1, false)), set.name, set.rows, set.classes, set.inner);
  check(same_bits(narrow, run<float>(set, 2, false)), "two threads", set.rows, set.classes,
        set.inner);
  check(same_bits(narrow, run<float>(set, 2, true)), "in place", set.rows, set.classes, set.inner);
}

// An elementwise likelihood of a CSR matrix and of the dense one: the same bits.
void test_sparse(int64_t rows, int64_t cols, int64_t copies) {
  int form = 0;
  while (std::strcmp(kForms[form], "poisson") != 0) ++form;
  seed = 5;
  const Counts counts(rows, cols);
  std::vector<float> dense(counts.dense.begin(), counts.dense.end());
  std::vector<float> params(static_cast<size_t>(copies * rows * cols));
  for (float& v : params) v = static_cast<float>(random_unit());
  std::vector<float> results[2];
  for (int sparse = 0; sparse < 2; ++sparse) {
    std::vector<float> loss(static_cast<size_t>(copies * rows)), grad(params.size());
    NllArgs a;
    a.shape = {copies * rows, cols, 1};
    a.form = form;
    a.numbers[0] = 1;
    a.params[0] = {params.data(), DType::kF32, 1, copies * rows, cols, 1, 1};
    a.target = {dense.data(), DType::kF32, 1, rows, cols, 1, 1};
    if (sparse) {
      a.target = {counts.values.data(), DType::kF64, 1, 1, 0, 1, 1};
      a.row_starts = counts.starts.data();
      a.columns = counts.columns.data();
    }
    a.target_rows = rows;
    a.reduce = Reduce::kSample;
    a.threads = 1 + sparse;
    a.loss = loss.data();
    a.grads[0] = {grad.data(), DType::kF32};
    cpu::nll(a);
    results[sparse] = loss;
    results[sparse].insert(results[sparse].end(), grad.begin(), grad.end());
  }
  check(same_bits(results[0], results[1]), "nll of CSR", rows, cols, copies);
}

}  // namespace

int main() {
  const RowForm categorical = RowForm::kCategorical, mixture = RowForm::kLogisticMixture;
  for (const bool over : {false, true}) {
    for (const RowForm form : {categorical, RowForm::kMultinomial, RowForm::kMultinomialSparse}) {
      test_rows({"a row alone", form, 6, 7, 1, 1, 2, 1, over});
      test_rows({"a row alone", form, 3, 1271, 1, 1, 1, 1, over});
      test_rows({"a row alone", form, 4, 2500, 1, 2, 2, 1, over});
    }
    test_rows({"side by side", categorical, 4, 7, 35, 2, 2, 1, over});
    test_rows({"side by side", categorical, 2, 300, 41, 1, 1, 1, over});
    test_rows({"side by side", categorical, 1, 3, 1300, 1, 1, 1, over});
    for (const int channels : {1, 3}) {
      const int64_t classes = channels == 3 ? 40 : 12;
      test_rows({"mixture, last", mixture, 70, classes, 1, 1, 2, channels, over});
      test_rows({"mixture", mixture, 4, classes, 37, 2, 2, channels, over});
    }
  }
  for (const RowForm form : {categorical, RowForm::kMultinomial, RowForm::kMultinomialSparse})
    test_rows({"no rows", form, 0, 7, 1, 1, 1, 1, false});
  test_rows({"no rows", mixture, 0, 40, 37, 1, 1, 3, false});
  test_rows({"no positions", categorical, 4, 7, 0, 1, 1, 1, false});
  test_rows({"no positions", mixture, 4, 40, 0, 1, 1, 3, false});
  test_sparse(5, 7, 1);
  test_sparse(3, 1271, 2);
  test_sparse(130, 20, 1);
  test_sparse(2, 4097, 1);
  std::printf(failures == 0 ? "all kernels agree\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
