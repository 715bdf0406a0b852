#include "core/dispatch.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/capability.h"
#include "math/likelihoods.h"

// The kernels' declarations, once per instruction set that is built.
#undef VAEFAST_ISA
#define VAEFAST_DECLARE(name, Args) bool name(const Args& args);
namespace vaefast {
namespace isa_default {
VAEFAST_CPU_KERNELS(VAEFAST_DECLARE)
}
#if defined(VAEFAST_HAVE_AVX2)
namespace isa_avx2 {
VAEFAST_CPU_KERNELS(VAEFAST_DECLARE)
}
#endif
#if defined(VAEFAST_HAVE_AVX512)
namespace isa_avx512 {
VAEFAST_CPU_KERNELS(VAEFAST_DECLARE)
}
#endif
}  // namespace vaefast
#undef VAEFAST_DECLARE

namespace vaefast {
namespace {

void check(bool done) {
  if (!done) throw std::bad_alloc();
}

}  // namespace

#if defined(VAEFAST_HAVE_AVX512)
#define VAEFAST_CASE_AVX512(name, args) \
  case Capability::kAvx512:             \
    return check(isa_avx512::name(args));
#else
#define VAEFAST_CASE_AVX512(name, args)
#endif
#if defined(VAEFAST_HAVE_AVX2)
#define VAEFAST_CASE_AVX2(name, args) \
  case Capability::kAvx2:             \
    return check(isa_avx2::name(args));
#else
#define VAEFAST_CASE_AVX2(name, args)
#endif

#define VAEFAST_DISPATCH(name, Args)           \
  void cpu::name(const Args& args) {           \
    switch (cpu_capability()) {                \
      VAEFAST_CASE_AVX512(name, args)          \
      VAEFAST_CASE_AVX2(name, args)            \
      default:                                 \
        return check(isa_default::name(args)); \
    }                                          \
  }

VAEFAST_CPU_KERNELS(VAEFAST_DISPATCH)

#define VAEFAST_NAME(name) #name,
const char* const kForms[] = {VAEFAST_LIKELIHOODS(VAEFAST_NAME) nullptr};
#undef VAEFAST_NAME

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  if (bytes < static_cast<int64_t>(2 * kHuge)) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kHuge - 1);
  // A refusal changes nothing but the time.
  if (end > begin) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace vaefast
