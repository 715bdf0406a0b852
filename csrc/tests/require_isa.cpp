// Linked into each test program: ends it as skipped where the CPU lacks what it was compiled for.
#include <cstdlib>
#include <string>

#include "core/capability.h"

namespace {

// Before main, and compiled without the instruction set's flags.
const bool checked = [] {
  for (vaefast::Capability capability : vaefast::available_capabilities())
    if (std::string(vaefast::capability_name(capability)) == REQUIRED_ISA) return true;
  std::_Exit(77);
}();

}  // namespace
