#include "core/capability.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(_MSC_VER)
#include <windows.h>
#endif

namespace vaefast {
namespace {

#ifdef VAEFAST_HAVE_AVX2
bool cpu_has_avx2() {
#if defined(_MSC_VER)
  return IsProcessorFeaturePresent(PF_AVX2_INSTRUCTIONS_AVAILABLE) != 0;
#else
  // F16C is not asked for: older clangs do not know the name, and every CPU with AVX2 has it.
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
}
#endif

#ifdef VAEFAST_HAVE_AVX512
bool cpu_has_avx512() {
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

Capability parse(const std::string& name) {
  std::string names;
  for (Capability capability : available_capabilities()) {
    if (name == capability_name(capability)) return capability;
    if (!names.empty()) names += ", ";
    names += capability_name(capability);
  }
  throw std::invalid_argument("VAEFAST_CPU_CAPABILITY must be one of " + names +
                              " (what this build and this CPU have), got " + name);
}

Capability choose() {
  const char* name = std::getenv("VAEFAST_CPU_CAPABILITY");
  if (name != nullptr && *name != '\0') return parse(name);
  return available_capabilities().back();
}

std::atomic<Capability>& current() {
  // A throw leaves it uninitialised: the next call reads the environment again.
  static std::atomic<Capability> capability(choose());
  return capability;
}

}  // namespace

Capability cpu_capability() { return current().load(std::memory_order_relaxed); }

void set_cpu_capability(const std::string& name) { current().store(parse(name)); }

std::vector<Capability> available_capabilities() {
  std::vector<Capability> found = {Capability::kDefault};
#ifdef VAEFAST_HAVE_AVX2
  if (cpu_has_avx2()) found.push_back(Capability::kAvx2);
#endif
#ifdef VAEFAST_HAVE_AVX512
  if (cpu_has_avx512()) found.push_back(Capability::kAvx512);
#endif
  return found;
}

const char* capability_name(Capability capability) {
  switch (capability) {
    case Capability::kAvx2:
      return "avx2";
    case Capability::kAvx512:
      return "avx512";
    default:
      return "default";
  }
}

}  // namespace vaefast
