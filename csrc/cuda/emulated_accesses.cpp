// What a compiler calls at each access to memory under -fsanitize=thread, in the place of
// ThreadSanitizer's library, which knows nothing of a GPU's barriers.
#include "cuda/emulated_accesses.h"

#define VAEFAST_ACCESS(bytes)                                                                    \
  void __tsan_read##bytes(void* at) { vaefast::emulated::access(at, bytes, false); }             \
  void __tsan_write##bytes(void* at) { vaefast::emulated::access(at, bytes, true); }             \
  void __tsan_unaligned_read##bytes(void* at) { vaefast::emulated::access(at, bytes, false); }   \
  void __tsan_unaligned_write##bytes(void* at) { vaefast::emulated::access(at, bytes, true); }   \
  void __tsan_read##bytes##_pc(void* at, void*) { vaefast::emulated::access(at, bytes, false); } \
  void __tsan_write##bytes##_pc(void* at, void*) { vaefast::emulated::access(at, bytes, true); }

extern "C" {
VAEFAST_ACCESS(1)
VAEFAST_ACCESS(2)
VAEFAST_ACCESS(4)
VAEFAST_ACCESS(8)
VAEFAST_ACCESS(16)
void __tsan_read_range(void* at, size_t bytes) { vaefast::emulated::access(at, bytes, false); }
void __tsan_write_range(void* at, size_t bytes) { vaefast::emulated::access(at, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
}
