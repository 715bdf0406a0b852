// The CPU kernels of one instruction set. False: out of memory, nothing was computed.
#pragma once

#include "core/kernels.h"
#include "math/config.h"

namespace vaefast {
namespace VAEFAST_ISA {

#define VAEFAST_DECLARE(name, Args) bool name(const Args& args);
VAEFAST_CPU_KERNELS(VAEFAST_DECLARE)
#undef VAEFAST_DECLARE

}  // namespace VAEFAST_ISA
}  // namespace vaefast
