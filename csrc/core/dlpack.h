// Memory of the core's as a tensor that other libraries take over (github.com/dmlc/dlpack).
#pragma once

#include <cstdint>
#include <vector>

#include "core/args.h"

namespace vaefast {

// A DLManagedTensor, dense and unwritten, or null where there is no memory. It is given back by its
// deleter, or by delete_dlpack.
void* new_dlpack(const std::vector<int64_t>& shape, DType dtype);
void delete_dlpack(void* tensor);

}  // namespace vaefast
