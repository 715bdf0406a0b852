// What travels into the likelihoods that have a class dimension.
#pragma once

#include "core/args.h"

namespace vaefast {

enum class RowForm : int { kCategorical, kMultinomial, kMultinomialSparse, kLogisticMixture };

// params is [rows, classes, inner], its last dimension dense where it is longer than 1; a position
// is one of rows x inner, and `segments` consecutive rows are one sample.
struct RowNllArgs {
  int64_t rows = 0, classes = 0, inner = 1, segments = 1;
  RowForm form = RowForm::kCategorical;
  double numbers[8] = {};
  const void* params = nullptr;
  DType dtype = DType::kF32;
  int64_t row_stride = 0, class_stride = 1;

  // Row r of params has the target of row r % target_rows. kCategorical: [target_rows, inner];
  // kMultinomial: [target_rows, classes]; kMultinomialSparse: the values of a CSR matrix;
  // kLogisticMixture: [target_rows, channels, inner].
  int64_t target_rows = 0;
  const void* target = nullptr;
  DType target_dtype = DType::kF32;
  const int64_t *row_starts = nullptr, *columns = nullptr;
  int64_t stored = 0;

  // [target_rows, inner], bytes and the compute type.
  const uint8_t* mask = nullptr;
  const void* weight = nullptr;

  Reduce reduce = Reduce::kSum;
  double factor = 1, grad_factor = 1;
  bool wide = false;
  int threads = 1;

  // loss: per position (kElem), per sample or one. grad: dense [rows, classes, inner]; it may lie
  // where params does.
  void* loss = nullptr;
  Output grad;
};

}  // namespace vaefast
