#include "core/dispatch.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/capability.h"
#include "math/likelihoods.h"

// The kernels' declarations, once per instruction set that is built.
#undef VAEFAST_ISA
#define VAEFAST_DECLARE(isa)                               \
  namespace vaefast {                                      \
  namespace isa {                                          \
  bool sample_kl(const SampleKlArgs& args);                \
  bool sample_kl_backward(const SampleKlArgs& args);       \
  bool estimated_kl(const EstimatedKlArgs& args);          \
  bool estimated_kl_backward(const EstimatedKlArgs& args); \
  bool log_ratio(const LogRatioArgs& args);                \
  bool log_ratio_backward(const LogRatioArgs& args);       \
  bool nll(const NllArgs& args);                           \
  bool noise(const NoiseArgs& args);                       \
  bool scale(const ScaleArgs& args);                       \
  bool mixture_log_prob(const MixtureArgs& args);          \
  bool mixture_log_prob_backward(const MixtureArgs& args); \
  bool tc_terms(const MixtureArgs& args);                  \
  bool tc_terms_backward(const MixtureArgs& args);         \
  bool mmd(const MmdArgs& args);                           \
  bool softmax_nll(const RowNllArgs& args);                \
  bool mixture_nll(const RowNllArgs& args);                \
  }                                                        \
  }

VAEFAST_DECLARE(isa_default)
#if defined(VAEFAST_HAVE_AVX2)
VAEFAST_DECLARE(isa_avx2)
#endif
#if defined(VAEFAST_HAVE_AVX512)
VAEFAST_DECLARE(isa_avx512)
#endif

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

VAEFAST_DISPATCH(sample_kl, SampleKlArgs)
VAEFAST_DISPATCH(sample_kl_backward, SampleKlArgs)
VAEFAST_DISPATCH(estimated_kl, EstimatedKlArgs)
VAEFAST_DISPATCH(estimated_kl_backward, EstimatedKlArgs)
VAEFAST_DISPATCH(log_ratio, LogRatioArgs)
VAEFAST_DISPATCH(log_ratio_backward, LogRatioArgs)
VAEFAST_DISPATCH(nll, NllArgs)
VAEFAST_DISPATCH(noise, NoiseArgs)
VAEFAST_DISPATCH(scale, ScaleArgs)
VAEFAST_DISPATCH(mixture_log_prob, MixtureArgs)
VAEFAST_DISPATCH(mixture_log_prob_backward, MixtureArgs)
VAEFAST_DISPATCH(tc_terms, MixtureArgs)
VAEFAST_DISPATCH(tc_terms_backward, MixtureArgs)
VAEFAST_DISPATCH(mmd, MmdArgs)
VAEFAST_DISPATCH(softmax_nll, RowNllArgs)
VAEFAST_DISPATCH(mixture_nll, RowNllArgs)

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
