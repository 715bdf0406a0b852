// Which of the compiled instruction sets the kernels run with.
#pragma once

#include <string>
#include <vector>

namespace vaefast {

enum class Capability { kDefault, kAvx2, kAvx512 };

// The best one that this build holds and this CPU has, or the one that VAEFAST_CPU_CAPABILITY
// names. Read once; throws std::invalid_argument for a name that cannot be served.
Capability cpu_capability();

// Overrides the choice for the whole process; for tests.
void set_cpu_capability(const std::string& name);

// Those that this build holds and this CPU has, from the plainest up.
std::vector<Capability> available_capabilities();

// "default", "avx2", "avx512"
const char* capability_name(Capability capability);

}  // namespace vaefast
