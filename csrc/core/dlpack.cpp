#include "core/dlpack.h"

#include "core/buffers.h"

namespace vaefast {
namespace {

// DLPack's binary interface, version 0.
struct DLTensor {
  void* data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2, kBfloat = 4;

// A tensor with the memory for its shape and strides.
struct Owned {
  DLManagedTensor managed;
  std::vector<int64_t> sizes;
};

}  // namespace

void* new_dlpack(const std::vector<int64_t>& shape, DType dtype) {
  const int64_t width = dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : 2;
  const size_t dims = shape.size();
  auto* owned = new Owned;
  owned->sizes.resize(2 * dims);
  int64_t elements = 1;
  for (size_t i = dims; i-- > 0;) {
    owned->sizes[i] = shape[i];
    owned->sizes[dims + i] = elements;
    elements *= shape[i];
  }
  void* const data = take_buffer(static_cast<size_t>(elements * width));
  if (data == nullptr) {
    delete owned;
    return nullptr;
  }
  DLTensor& t = owned->managed.tensor;
  t = {data, kCpu, 0, static_cast<int32_t>(dims), 0, 0, 1, nullptr, nullptr, 0};
  t.code = dtype == DType::kBF16 ? kBfloat : kFloat;
  t.bits = static_cast<uint8_t>(8 * width);
  t.shape = owned->sizes.data();
  t.strides = t.shape + dims;
  owned->managed.context = owned;
  owned->managed.deleter = [](DLManagedTensor* self) { delete_dlpack(self); };
  return &owned->managed;
}

void delete_dlpack(void* tensor) {
  auto* managed = static_cast<DLManagedTensor*>(tensor);
  give_buffer_back(managed->tensor.data);
  delete static_cast<Owned*>(managed->context);
}

}  // namespace vaefast
